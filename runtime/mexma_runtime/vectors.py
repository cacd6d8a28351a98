"""What is done to vectors after the engine: unit length, handing them to torch."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mexma_runtime.device_vectors import DeviceVectors
from mexma_runtime.errors import MissingDependencyError, UsageError
from mexma_runtime.types import Vectors

SMALLEST_NORM = np.float32(1e-12)
"""torch.nn.functional.normalize's eps: a vector of zeros stays one."""


def rows_to_fill(out: Vectors | None, n_rows: int, dim: int) -> Vectors:
    """`out` where it is float32 `(n_rows, dim)`, C-contiguous and writable (else UsageError), or such an array anew."""
    if out is None:
        return np.empty((n_rows, dim), dtype=np.float32)
    if not isinstance(out, np.ndarray):
        raise UsageError(f"out: expected a NumPy array, float32 {(n_rows, dim)}, got {type(out).__name__}")
    if out.dtype != np.float32 or out.shape != (n_rows, dim) or not (out.flags.c_contiguous and out.flags.writeable):
        raise UsageError(
            f"out: expected float32 {(n_rows, dim)}, C-contiguous and writable, got {out.dtype} {out.shape}, "
            f"C-contiguous: {out.flags.c_contiguous}, writable: {out.flags.writeable}"
        )
    return out


def normalize_rows(vectors: Vectors) -> None:
    """Give each row of float32 `(n, dim)` length 1, in place."""
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), SMALLEST_NORM)


def to_tensor(vectors: NDArray[Any] | DeviceVectors) -> Any:
    """The same memory as a torch.Tensor; MissingDependencyError where there is no torch."""
    try:
        # By name: nothing here may import torch but this, when asked to.
        torch = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "torch", needed_for="convert_to_tensor", extra="reference", instead="take the NumPy array"
        ) from error
    return torch.from_dlpack(vectors)
