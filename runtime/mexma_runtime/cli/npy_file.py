"""A .npy file that grows row by row and appears under its name only when it is complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib import format as npy_format

from mexma_runtime.bundle.whole_files import WholeFile
from mexma_runtime.types import Vectors


@contextmanager
def npy_writer(path: Path, *, dim: int) -> Iterator[Callable[[Vectors], None]]:
    """Give a function that writes one row, float32 `(dim,)`; `path` is complete when the block ends well.

    Where the block raises, `path` is as it was. Raises as WholeFile.
    """
    n_rows = 0

    def append(row: Vectors) -> None:
        nonlocal n_rows
        file.write(row.data)
        n_rows += 1

    with WholeFile(path) as file:
        data_start = _write_header(file, (n_rows, dim))
        yield append
        file.rewind()
        # NumPy leaves room in a header for the first dimension to grow.
        assert _write_header(file, (n_rows, dim)) == data_start


def _write_header(file: WholeFile, shape: tuple[int, int]) -> int:
    header = {"descr": npy_format.dtype_to_descr(np.dtype("<f4")), "fortran_order": False, "shape": shape}
    npy_format.write_array_header_1_0(file, header)
    return file.tell()
