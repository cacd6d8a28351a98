"""The model's tensors as the graphs want them, and the file of external data that holds the large ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mexma_export.checkpoint.checkpoint import Checkpoint
from mexma_export.checkpoint.tensors import TensorInfo, chunks, whole
from mexma_runtime.bundle.bundle import content_name
from mexma_runtime.types import Precision

ALIGNMENT = 4096
"""Bytes; a tensor on a page boundary can be mapped by itself."""

_FLOATS: Mapping[Precision, Any] = {Precision.FP32: np.float32, Precision.FP16: np.float16}


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A file of external data, written under a temporary name."""

    written: Path
    name: str
    """`weights.HASH.bin`, its final name."""
    sha256: str
    size: int
    tensors: Mapping[str, ir.TensorProtocol]
    """Tensors that a graph may name: matrices in this file, and vectors to stand in the graph's own."""


class WeightsWriter:
    """Writes tensors end to end, each on a page boundary, and hashes them on the way."""

    def __init__(self, path: Path) -> None:
        """Make the new file `path`."""
        self.path = path
        self.size = 0
        """Bytes written so far."""
        self._file = path.open("xb")
        self._digest = hashlib.sha256()
        self._places: dict[str, tuple[int, int, tuple[int, ...], ir.DataType]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, name: str, array: NDArray[Any]) -> None:
        """Append one tensor."""
        self.add_pieces(name, array.shape, (array,))

    def add_pieces(self, name: str, shape: tuple[int, ...], pieces: Iterable[NDArray[Any]]) -> None:
        """Append one tensor of `shape` that comes in pieces along its first axis."""
        start = _aligned(self.size)
        self._append(bytes(start - self.size))
        element = None
        for piece in pieces:
            data = np.ascontiguousarray(piece)
            element = ir.DataType.from_numpy(data.dtype)
            self._append(data.view(np.uint8).data.cast("B"))
        assert element is not None
        self._places[name] = (start, self.size - start, shape, element)

    def finish(self, vectors: Mapping[str, NDArray[Any]] | None = None) -> WeightsFile:
        """Close the file; `vectors` join its tensors."""
        self._file.close()
        sha256 = self._digest.hexdigest()
        final = content_name("weights", sha256, "bin")
        tensors: dict[str, ir.TensorProtocol] = {
            name: ir.ExternalTensor(final, start, length, element, shape=ir.Shape(shape), name=name)
            for name, (start, length, shape, element) in self._places.items()
        }
        tensors |= {name: ir.tensor(vector, name=name) for name, vector in (vectors or {}).items()}
        return WeightsFile(written=self.path, name=final, sha256=sha256, size=self.size, tensors=tensors)

    def _append(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)


def weights_bytes(checkpoint: Checkpoint, precision: Precision) -> int:
    """What `write_weights` will write, exactly."""
    width = np.dtype(_FLOATS[precision]).itemsize
    end = 0
    for name, info in checkpoint.tensors.items():
        if _is_stored(name, info.shape):
            end = _aligned(end) + width * int(np.prod(info.shape))
    return end


def write_weights(
    checkpoint: Checkpoint,
    precision: Precision,
    path: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> WeightsFile:
    """Write the matrices of `checkpoint` to `path`: linear weights as (in, out), token type 0 added to the positions.

    The same checkpoint gives the same bytes. One tensor is in memory at a time.
    """
    dtype = np.dtype(_FLOATS[precision])
    total = weights_bytes(checkpoint, precision)
    with WeightsWriter(path) as writer:

        def counted(pieces: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[Any]]:
            for piece in pieces:
                yield piece.astype(dtype, copy=False)
                if progress:
                    progress(writer.size, total)

        for name, info in checkpoint.tensors.items():
            if _is_stored(name, info.shape):
                shape = info.shape if name.startswith("embeddings.") else info.shape[::-1]
                writer.add_pieces(name, shape, counted(_pieces(checkpoint, name)))
        return writer.finish({name: vector.astype(dtype) for name, vector in _vectors(checkpoint)})


def position_table(checkpoint: Checkpoint) -> NDArray[np.float32]:
    """The position table with the one token type's row added: float32 `(positions, hidden)`."""
    positions = whole(checkpoint.tensors["embeddings.position"])
    table: NDArray[np.float32] = positions + whole(checkpoint.tensors["embeddings.token_type"])[0]
    return table


def _is_stored(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and name != "embeddings.token_type"


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _pieces(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[np.float32]]:
    info = checkpoint.tensors[name]
    if not name.startswith("embeddings."):
        yield whole(info).T
    elif name == "embeddings.position":
        yield position_table(checkpoint)
    else:
        yield from chunks(info)


def _vectors(checkpoint: Checkpoint) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for name, info in checkpoint.tensors.items():
        if len(info.shape) == 1:
            yield name, whole(info)
    for layer in range(checkpoint.config.n_layers):
        path = f"layer.{layer}.attention"
        biases = [whole(checkpoint.tensors[f"{path}.{part}.bias"]) for part in ("query", "key", "value")]
        yield f"{path}.bias", np.concatenate(biases)


def write_fp16_tables(
    checkpoint: Checkpoint, path: Path, *, progress: Callable[[int, int], None] | None = None
) -> WeightsFile:
    """Write the embedding tables to `path` in fp16: TensorRT takes no rows of int8."""
    info = checkpoint.tensors["embeddings.word"]
    with WeightsWriter(path) as writer:
        halved = (rows.astype(np.float16) for rows in _counted_rows(info, progress))
        writer.add_pieces("embeddings.word", info.shape, halved)
        writer.add("embeddings.position", position_table(checkpoint).astype(np.float16))
        return writer.finish({name: vector.astype(np.float16) for name, vector in _table_vectors(checkpoint)})


def write_int8_tables(
    checkpoint: Checkpoint, path: Path, *, progress: Callable[[int, int], None] | None = None
) -> WeightsFile:
    """Write the embedding tables to `path`: words in int8 with a scale for each row, positions (few) in fp32."""
    info = checkpoint.tensors["embeddings.word"]
    scales: list[NDArray[np.float32]] = []

    def quantized() -> Iterator[NDArray[np.int8]]:
        for rows in _counted_rows(info, progress):
            largest = np.abs(rows).max(axis=1, keepdims=True)
            # A row of zeros, as padding's may be, stays zero.
            scales.append(np.where(largest > 0, largest / np.float32(127), np.float32(1)))
            yield np.rint(rows / scales[-1]).astype(np.int8)

    with WeightsWriter(path) as writer:
        writer.add_pieces("embeddings.word", info.shape, quantized())
        writer.add("embeddings.word.scale", np.concatenate(scales))
        writer.add("embeddings.position", position_table(checkpoint))
        return writer.finish(dict(_table_vectors(checkpoint)))


def _counted_rows(info: TensorInfo, progress: Callable[[int, int], None] | None) -> Iterator[NDArray[np.float32]]:
    """Rows of a table in pieces; each is reported when the next is asked for."""
    n_done = 0
    for rows in chunks(info):
        yield rows
        n_done += len(rows)
        if progress:
            progress(n_done, info.shape[0])


def _table_vectors(checkpoint: Checkpoint) -> Iterator[tuple[str, NDArray[np.float32]]]:
    return ((name, vector) for name, vector in _vectors(checkpoint) if name.startswith("embeddings."))
