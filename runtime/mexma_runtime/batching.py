"""Which sentences run together: lengths in, groups of rows out. Pure."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mexma_runtime.backends.base import BatchPolicy


def plan_batches(
    lengths: NDArray[np.int64], policy: BatchPolicy, max_rows: int | None = None
) -> list[NDArray[np.int64]]:
    """Groups of rows to run together: int64 arrays that hold every row of `lengths` (int64 `(n,)`) exactly once.

    A batch has at most `policy.max_batch_tokens` tokens, padding included, unless it is one sentence, and at most
    `max_rows` rows. Long sentences come first; rows of one length stay in input order.
    """
    if lengths.size == 0:
        return []
    order = np.argsort(-lengths, kind="stable")
    descending = lengths[order]
    limit = lengths.size if max_rows is None else max_rows
    bounds = _equal_length_bounds if policy.equal_length else _padded_bounds
    edges = bounds(descending, policy.max_batch_tokens, limit)
    return [order[start:end] for start, end in pairwise(edges)]


def _equal_length_bounds(descending: NDArray[np.int64], max_tokens: int, max_rows: int) -> list[int]:
    changes = np.flatnonzero(np.diff(descending)) + 1
    bounds = [0]
    for start, end in pairwise([0, *changes.tolist(), descending.size]):
        length, n_rows = max(1, int(descending[start])), end - start
        rows_a_batch = min(max_rows, max(1, max_tokens // length))
        # Even batches: one of a single row computes its few tokens slowly.
        n_batches = -(-n_rows // rows_a_batch)
        bounds += [start + n_rows * i // n_batches for i in range(1, n_batches + 1)]
    return bounds


def _padded_bounds(descending: NDArray[np.int64], max_tokens: int, max_rows: int) -> list[int]:
    bounds = [0]
    while bounds[-1] < descending.size:
        longest = max(1, int(descending[bounds[-1]]))
        rows = min(max_rows, max(1, max_tokens // longest))
        bounds.append(min(bounds[-1] + rows, descending.size))
    return bounds
