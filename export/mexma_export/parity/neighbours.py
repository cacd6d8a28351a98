"""Whether an engine and the reference agree on who is near whom: a share for each sentence."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mexma_runtime.types import Vectors

N_NEIGHBOURS = 10
TIE_DISTANCE = 5e-6
"""Neighbours at reference distances this close (between unit vectors) are equally near.

Two fp32 implementations of one model move these distances by about 2e-7.
"""
_BLOCK_BYTES = 64 << 20

Doubles = NDArray[np.float64]


def agreement(vectors: Vectors, reference: Vectors) -> Doubles:
    """Shares of the reference's nearest other rows, by cosine, that the engine finds: float64 `(4, n)`.

    The rows are top-1, top-10, and both in mixed use (query of the engine among the reference's rows); `n` is 2 or
    more. Float32 `(n, dim)` both, no row of zeros. Of n - 1 < 10 neighbours all count. A neighbour that the reference
    holds as near as its own choice (`TIE_DISTANCE`; duplicates are common) agrees. Ties that only the engine sees are
    broken arbitrarily.
    """
    engine, judge = _unit(vectors), _unit(reference)
    n = len(judge)
    k = min(N_NEIGHBOURS, n - 1)
    shares = np.empty((4, n))
    for rows in blocks(n, n):
        true = _similarities(judge, judge, rows)
        nearest = np.take_along_axis(true, _nearest(true, k), axis=1)
        for use, index in enumerate((engine, judge)):
            chosen = np.take_along_axis(true, _nearest(_similarities(engine, index, rows), k), axis=1)
            shares[2 * use, rows] = _share_agreeing(chosen[:, :1], nearest[:, :1])
            shares[2 * use + 1, rows] = _share_agreeing(chosen, nearest)
    return shares


def blocks(n: int, width: int) -> Iterator[slice]:
    """Slices of `n` rows such that a float64 block `(rows, width)` stays within 64 MiB."""
    step = max(1, _BLOCK_BYTES // (8 * width))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _unit(vectors: Vectors) -> Doubles:
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return unit


def _similarities(queries: Doubles, index: Doubles, rows: slice) -> Doubles:
    """Cosines of `queries[rows]` to every row of `index`, a query's own row being -inf."""
    similarities: Doubles = queries[rows] @ index.T
    similarities[np.arange(rows.stop - rows.start), np.arange(rows.start, rows.stop)] = -np.inf
    return similarities


def _nearest(similarities: Doubles, k: int) -> NDArray[np.intp]:
    """Columns of the `k` largest a row, largest first."""
    nearest = np.argpartition(similarities, -k, axis=1)[:, -k:]
    order = np.argsort(-np.take_along_axis(similarities, nearest, axis=1), axis=1)
    return np.take_along_axis(nearest, order, axis=1)


def _share_agreeing(chosen: Doubles, nearest: Doubles) -> Doubles:
    """Share of neighbours that agree, given the *reference's* similarities of the engine's choice and of its own.

    Those strictly nearer than the last of the reference's own agree by themselves; those tied with that last one agree
    as long as the strictly nearer ones leave places.
    """
    chosen, nearest = (np.sqrt(np.maximum(0, 2 - 2 * similarity)) for similarity in (chosen, nearest))
    last = nearest[:, -1:]
    places = (nearest >= last - TIE_DISTANCE).sum(axis=1)
    nearer = (chosen < last - TIE_DISTANCE).sum(axis=1)
    tied = (np.abs(chosen - last) <= TIE_DISTANCE).sum(axis=1)
    shares: Doubles = (nearer + np.minimum(tied, places)) / nearest.shape[1]
    return shares
