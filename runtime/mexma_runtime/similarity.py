"""How alike vectors are, by sentence-transformers' four functions: the larger, the more alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mexma_runtime.errors import InputError
from mexma_runtime.types import Similarity, Vectors
from mexma_runtime.vectors import normalize_rows

BLOCK_NUMBERS = 1 << 24
"""Numbers that are held at once beside the result, where a function needs more than a matrix product."""


def similarity(a: ArrayLike, b: ArrayLike, function: Similarity = Similarity.COSINE) -> Vectors:
    """Of all rows of `a` `(n, dim)` or `(dim,)` to all of `b` `(m, dim)` or `(dim,)`: float32 `(n, m)`.

    Raises InputError where the shapes do not fit.
    """
    left, right = _rows(a, function), _rows(b, function)
    if left.shape[1] != right.shape[1]:
        raise _misfit(a, b, "(n, dim) and (m, dim)")
    if function in (Similarity.COSINE, Similarity.DOT):
        products: Vectors = left @ right.T
        return products
    result = np.empty((len(left), len(right)), dtype=np.float32)
    step = max(1, BLOCK_NUMBERS // max(1, right.size))
    for start in range(0, len(left), step):
        differences = left[start : start + step, None, :] - right[None, :, :]
        result[start : start + step] = -_lengths(differences, function)
    return result


def pairwise_similarity(a: ArrayLike, b: ArrayLike, function: Similarity = Similarity.COSINE) -> Vectors:
    """Of each row of `a` `(n, dim)` to the same row of `b`: float32 `(n,)`. Raises InputError as `similarity` does."""
    left, right = _rows(a, function), _rows(b, function)
    if left.shape != right.shape:
        raise _misfit(a, b, "(n, dim) twice")
    if function in (Similarity.COSINE, Similarity.DOT):
        products: Vectors = np.einsum("nd,nd->n", left, right)
        return products
    return -_lengths(left - right, function)


def _rows(vectors: ArrayLike, function: Similarity) -> Vectors:
    """Float32 `(n, dim)`, of length 1 for the cosine."""
    rows = np.atleast_2d(np.array(vectors, dtype=np.float32))
    if rows.ndim != 2:
        raise InputError(f"similarity: expected (n, dim) or (dim,), got {rows.shape}")
    if function is Similarity.COSINE:
        normalize_rows(rows)
    return rows


def _lengths(differences: NDArray[np.float32], function: Similarity) -> Vectors:
    """The Euclidean or the Manhattan length of the last axis."""
    order = 2 if function is Similarity.EUCLIDEAN else 1
    lengths: Vectors = np.linalg.norm(differences, ord=order, axis=-1)
    return lengths


def _misfit(a: ArrayLike, b: ArrayLike, expected: str) -> InputError:
    return InputError(f"similarity: expected {expected}, got {np.shape(a)} and {np.shape(b)}")
