"""A .npy file that grows row by row and appears under its name only when it is complete."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.lib import format as npy_format

from mexma_runtime.errors import UsageError
from mexma_runtime.types import Vectors


class NpyWriter:
    """Writes float32 rows to a file beside `path`, which becomes `path` when the `with` block ends well."""

    def __init__(self, path: Path, *, dim: int) -> None:
        self._path, self._dim, self._n_rows = path, dim, 0
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            if path.is_dir():
                raise IsADirectoryError(0, "it is a folder")
            self._file = self._part.open("wb")
        except OSError as error:
            raise UsageError(f"{path}: cannot be written: {error.strerror}") from None
        self._write_header()
        self._data_start = self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the file, or remove it where the block raised."""
        try:
            with self._file:
                if kind is None:
                    self._file.seek(0)
                    self._write_header()
                    # NumPy leaves room in a header for the first dimension to grow.
                    assert self._file.tell() == self._data_start
                    self._file.flush()
                    os.fsync(self._file.fileno())
                    self._part.replace(self._path)
        finally:
            self._part.unlink(missing_ok=True)

    def append(self, row: Vectors) -> None:
        """Write one row: float32 `(dim,)`."""
        self._file.write(row.data)
        self._n_rows += 1

    def _write_header(self) -> None:
        header = {"descr": npy_format.dtype_to_descr(np.dtype("<f4")), "fortran_order": False}
        npy_format.write_array_header_1_0(self._file, {**header, "shape": (self._n_rows, self._dim)})
