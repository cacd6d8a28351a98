"""The model's tensors as the graphs want them, and the file of external data that holds the large ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mexma_export.checkpoint import Checkpoint
from mexma_export.tensors import chunks, whole
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
    """Every tensor that a graph may name: matrices in this file, vectors to stand in the graph's own."""


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
    element = ir.DataType.from_numpy(dtype)
    total = weights_bytes(checkpoint, precision)
    places: dict[str, tuple[int, int, tuple[int, ...]]] = {}
    digest = hashlib.sha256()
    end = 0
    with path.open("xb") as file:
        for name, info in checkpoint.tensors.items():
            if not _is_stored(name, info.shape):
                continue
            start = _aligned(end)
            _append(file, digest, bytes(start - end))
            end = start
            for piece in _pieces(checkpoint, name):
                data = np.ascontiguousarray(piece, dtype=dtype)
                _append(file, digest, data.data)
                end += data.nbytes
                if progress:
                    progress(end, total)
            shape = info.shape if name.startswith("embeddings.") else info.shape[::-1]
            places[name] = (start, end - start, shape)
    sha256 = digest.hexdigest()
    final = f"weights.{sha256[:16]}.bin"
    tensors: dict[str, ir.TensorProtocol] = {
        name: ir.ExternalTensor(final, start, length, element, shape=ir.Shape(shape), name=name)
        for name, (start, length, shape) in places.items()
    }
    for name, vector in _vectors(checkpoint):
        tensors[name] = ir.tensor(vector.astype(dtype), name=name)
    return WeightsFile(written=path, name=final, sha256=sha256, size=end, tensors=tensors)


def _is_stored(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and name != "embeddings.token_type"


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _append(file: Any, digest: Any, data: Any) -> None:
    file.write(data)
    digest.update(data)


def _pieces(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[np.float32]]:
    info = checkpoint.tensors[name]
    if not name.startswith("embeddings."):
        yield whole(info).T
    elif name == "embeddings.position":
        yield whole(info) + whole(checkpoint.tensors["embeddings.token_type"])[0]
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
