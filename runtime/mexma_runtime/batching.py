"""Which sentences run together: lengths in, groups of rows out. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


class Grouping(StrEnum):
    """Which sentences a batch may hold."""

    EQUAL = "equal"
    """Of one length, so that there is no padding."""
    MIXED = "mixed"
    """Of any length: the backend parts them by length itself, and pads nothing."""
    PADDED = "padded"
    """Of any length, padded to the longest."""
    IN_ORDER = "in order"
    """Of any length, neighbours in the input: nothing is padded, and vectors are written where they belong."""


@dataclass(frozen=True, kw_only=True)
class BatchPolicy:
    """How a backend wants its batches; batches follow from lengths alone."""

    max_batch_tokens: int
    """No batch holds more tokens, padding included, but for one sentence that is longer by itself."""
    grouping: Grouping
    max_batch_rows: int | None = None
    """Sentences; None: no limit."""


def make_batches(
    lengths: NDArray[np.int64], policy: BatchPolicy, max_rows: int | None = None
) -> list[NDArray[np.int64]]:
    """Groups of rows to run together: int64 arrays that hold every row of `lengths` (int64 `(n,)`) exactly once.

    A batch has at most `policy.max_batch_tokens` tokens, padding included, unless it is one sentence, and at most
    `max_rows` rows, nor more than `policy.max_batch_rows`. Long sentences come first; rows of one length stay in input
    order. But with Grouping.IN_ORDER all rows do.
    """
    if lengths.size <= 1:
        return [np.zeros(1, dtype=np.int64)] * lengths.size
    is_sorted = policy.grouping is not Grouping.IN_ORDER
    order = np.argsort(-lengths, kind="stable") if is_sorted else np.arange(lengths.size)
    limit = min(limit for limit in (lengths.size, max_rows, policy.max_batch_rows) if limit is not None)
    edges = _BOUNDS[policy.grouping](lengths[order], policy.max_batch_tokens, limit)
    return [order[start:end] for start, end in pairwise(edges)]


def _equal_bounds(descending: NDArray[np.int64], max_tokens: int, max_rows: int) -> list[int]:
    changes = np.flatnonzero(np.diff(descending)) + 1
    bounds = [0]
    for start, end in pairwise([0, *changes.tolist(), descending.size]):
        length, n_rows = max(1, int(descending[start])), end - start
        rows_a_batch = min(max_rows, max(1, max_tokens // length))
        # Even batches: one of a single row computes its few tokens slowly.
        n_batches = -(-n_rows // rows_a_batch)
        bounds += [start + n_rows * i // n_batches for i in range(1, n_batches + 1)]
    return bounds


def _mixed_bounds(lengths: NDArray[np.int64], max_tokens: int, max_rows: int) -> list[int]:
    ends = np.cumsum(lengths)
    bounds = [0]
    while bounds[-1] < lengths.size:
        start = bounds[-1]
        n_before = int(ends[start - 1]) if start else 0
        fitting = int(np.searchsorted(ends, n_before + max_tokens, side="right"))
        bounds.append(min(max(fitting, start + 1), start + max_rows))
    return bounds


def _padded_bounds(descending: NDArray[np.int64], max_tokens: int, max_rows: int) -> list[int]:
    bounds = [0]
    while bounds[-1] < descending.size:
        longest = max(1, int(descending[bounds[-1]]))
        rows = min(max_rows, max(1, max_tokens // longest))
        bounds.append(min(bounds[-1] + rows, descending.size))
    return bounds


_BOUNDS = {
    Grouping.EQUAL: _equal_bounds,
    Grouping.MIXED: _mixed_bounds,
    Grouping.PADDED: _padded_bounds,
    Grouping.IN_ORDER: _mixed_bounds,
}
