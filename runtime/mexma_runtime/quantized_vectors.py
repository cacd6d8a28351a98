"""Vectors in fewer bits, with the numbers of sentence-transformers' `quantize_embeddings`."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mexma_runtime.errors import InputError
from mexma_runtime.types import Vectors


class VectorPrecision(StrEnum):
    """The number format that vectors are given in."""

    FLOAT32 = "float32"
    INT8 = "int8"
    """256 steps between the least and the largest number of each dimension in the call; -128 is the least."""
    UINT8 = "uint8"
    """The same; 0 is the least."""
    BINARY = "binary"
    """A bit a number, set where it is positive; eight are an int8, less 128."""
    UBINARY = "ubinary"
    """The same; eight are a uint8."""


def quantize_vectors(vectors: Vectors, precision: VectorPrecision) -> NDArray[Any]:
    """float32 `(n, dim)` or `(dim,)` in `precision`: of bits, `dim / 8` numbers a row, rounded up.

    InputError: int8 or uint8 of a single vector, whose numbers have no range.
    """
    if precision is VectorPrecision.FLOAT32:
        return vectors
    if precision in (VectorPrecision.BINARY, VectorPrecision.UBINARY):
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if precision is VectorPrecision.UBINARY else (bits - 128).astype(np.int8)
    if vectors.ndim == 1 or len(vectors) == 1:
        raise InputError(
            f"precision {precision.value!r} takes the range of each dimension from the vectors of the call, and a "
            "single one has none: embed many at once, or take 'binary' or 'ubinary'"
        )
    if not len(vectors):
        return np.zeros(vectors.shape, dtype=np.dtype(precision.value))
    least, largest = vectors.min(axis=0), vectors.max(axis=0)
    steps = (largest - least) / 255
    levels: Vectors = np.clip(np.floor((vectors - least) / np.where(steps == 0, 1, steps)), 0, 255)
    return levels.astype(np.uint8) if precision is VectorPrecision.UINT8 else (levels - 128).astype(np.int8)
