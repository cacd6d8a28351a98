"""How alike vectors are, by sentence-transformers' four functions: the larger, the more alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mexma_runtime.errors import InputError
from mexma_runtime.types import Similarity, Vectors
from mexma_runtime.vectors import normalize_rows

BLOCK_NUMBERS = 1 << 24
"""Numbers that are held at once beside the result, where a function needs more than a matrix product."""


def similarity(a: ArrayLike, b: ArrayLike, function: Similarity = Similarity.COSINE) -> Vectors:
    """Of all rows of `a` `(n, dim)` or `(dim,)` to all of `b` `(m, dim)` or `(dim,)`: float32 `(n, m)`.

    Both may be torch's tensors, wherever they are. Raises InputError for what is no vectors, and where the shapes do
    not fit.
    """
    first, second = _vectors(a), _vectors(b)
    if first.shape[-1] != second.shape[-1]:
        raise _misfit(first, second, "(n, dim) and (m, dim)")
    left, right = _rows(first, function), _rows(second, function)
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
    """Of each row of `a` `(n, dim)` to the same row of `b`: float32 `(n,)`; of `(dim,)` to `(dim,)`: `()`.

    The rest as `similarity`.
    """
    first, second = _vectors(a), _vectors(b)
    left, right = _rows(first, function), _rows(second, function)
    if left.shape != right.shape:
        raise _misfit(first, second, "(n, dim) twice")
    if function in (Similarity.COSINE, Similarity.DOT):
        scores: Vectors = np.einsum("nd,nd->n", left, right)
    else:
        scores = -_lengths(left - right, function)
    return scores.reshape(np.broadcast_shapes(first.shape, second.shape)[:-1])


def _vectors(given: Any) -> Vectors:
    """A copy, float32 `(n, dim)` or `(dim,)`; InputError for what is none."""
    try:
        found = np.asarray([_on_host(row) for row in given] if isinstance(given, list | tuple) else _on_host(given))
        if found.dtype.kind in "cmMOSU":
            raise TypeError(f"{found.dtype} are no real numbers")
        vectors: Vectors = found.astype(np.float32)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"similarity: expected numbers, (n, dim) or (dim,), got {type(given).__name__}: {error}"
        ) from None
    if vectors.ndim not in (1, 2) or not vectors.shape[-1]:
        raise InputError(f"similarity: expected (n, dim) or (dim,), got {vectors.shape}")
    return vectors


def _on_host(given: Any) -> Any:
    """What NumPy reads of a torch.Tensor; all else as it is."""
    return given.detach().float().cpu() if hasattr(given, "detach") else given


def _rows(vectors: Vectors, function: Similarity) -> Vectors:
    """`vectors` as `(n, dim)`, made of length 1 for the cosine."""
    rows = np.atleast_2d(vectors)
    if function is Similarity.COSINE:
        normalize_rows(rows)
    return rows


def _lengths(differences: NDArray[np.float32], function: Similarity) -> Vectors:
    """The Euclidean or the Manhattan length of the last axis."""
    order = 2 if function is Similarity.EUCLIDEAN else 1
    lengths: Vectors = np.linalg.norm(differences, ord=order, axis=-1)
    return lengths


def _misfit(a: Vectors, b: Vectors, expected: str) -> InputError:
    return InputError(f"similarity: expected {expected}, got {a.shape} and {b.shape}")
