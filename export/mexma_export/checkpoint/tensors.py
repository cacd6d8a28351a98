"""The tensors of a checkpoint's safetensors files, mapped into memory and read in slices when needed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mexma_export.checkpoint.json_files import is_lfs_pointer
from mexma_runtime.errors import CheckpointError, FileError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CHUNK_BYTES = 1 << 26

DTYPES: Mapping[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
"""What weights may be stored as; all become fp32, which F64 is rounded to, as PyTorch rounds it."""


class _Slices(Protocol):
    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...
    def __getitem__(self, rows: slice) -> NDArray[Any]: ...


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """What a file's header says of one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it: F32, F16, BF16, I64, ..."""
    file: Path

    @property
    def is_readable(self) -> bool:
        """Whether the weights' number format is one that becomes fp32."""
        return self.dtype in DTYPES


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, in name order; CheckpointError where there are none."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        try:
            weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            names = sorted({str(name) for name in weight_map.values()})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(folder / INDEX, [f"expected an object with a weight_map: {error!r}"]) from None
        missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
        if missing:
            raise CheckpointError(folder, [f"{INDEX} names {name}, which is missing" for name in missing])
        return [folder / name for name in names]
    if (folder / SINGLE).is_dir():
        raise CheckpointError(folder, [f"{SINGLE} is a folder: expected a file"])
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".incomplete", ".bin"))
    there = f" Of what is there, transformers loads nothing by itself: {', '.join(others)}." if others else ""
    reason = (
        f"no weights: expected {SINGLE}, or {INDEX} with its parts.{there} A pytorch_model.bin is refused: it is a "
        "pickle, which runs code when opened. Where you trust it, load it with transformers and save_pretrained() it "
        "again"
    )
    raise CheckpointError(folder, [reason])


def read_headers(files: list[Path]) -> tuple[dict[str, TensorInfo], list[str]]:
    """Every tensor that the files hold, and the problems of the files themselves; FileError for one out of reach."""
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, TensorInfo] = {}
    problems = []
    for file in files:
        try:
            file.open("rb").close()  # what the library says of a file out of reach has no reason
            with safe_open(file, framework="numpy") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    if name in tensors:
                        problems.append(f"{name}: stands in {tensors[name].file.name} and again in {file.name}")
                    view = cast(_Slices, opened.get_slice(name))
                    shape = tuple(view.get_shape())
                    tensors[name] = TensorInfo(name=name, shape=shape, dtype=view.get_dtype(), file=file)
        except PermissionError as error:
            raise FileError(file, "cannot be read", error) from None
        except (SafetensorError, OSError) as error:
            reason = "it is a pointer of Git LFS" if is_lfs_pointer(file) else error
            problems.append(f"{file.name}: cannot be read as safetensors ({reason}): download it again")
    return tensors, problems


def chunks(info: TensorInfo) -> Iterator[NDArray[np.float32]]:
    """The tensor as fp32, in slices along its first axis of at most 64 MiB; their memory is free once dropped.

    The file is mapped for each tensor anew, so that no more than one tensor's pages count as this process's memory.
    """
    mapped = _mapped(info)
    row_bytes = np.dtype(np.float32).itemsize * int(np.prod(info.shape[1:]))
    step = max(1, CHUNK_BYTES // row_bytes)
    for row in range(0, mapped.shape[0], step):
        yield _as_fp32(mapped[row : row + step])


def whole(info: TensorInfo) -> NDArray[np.float32]:
    """The tensor as fp32."""
    return np.concatenate(list(chunks(info)))


def rows_of(info: TensorInfo, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """The rows of a table, as fp32: `(*rows.shape, columns)`; only they are read from the file."""
    return _as_fp32(_mapped(info)[rows])


def _as_fp32(values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what leaves the range of fp32 is infinite, and refused as such
        return np.asarray(values).astype(np.float32, copy=False)


def _mapped(info: TensorInfo) -> NDArray[Any]:
    dtype = np.dtype(DTYPES[info.dtype])
    with info.file.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
    begin, _end = header[info.name]["data_offsets"]
    return np.memmap(info.file, dtype=dtype, mode="r", offset=start + begin, shape=info.shape)
