"""Which sentences run together: lengths in, groups of rows out. Pure."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Lengths = NDArray[np.int64]
_FIRST_ROW: Rows = np.zeros(1, dtype=np.int64)
_NO_ROWS: Rows = np.zeros(0, dtype=np.int64)


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


class RowsLeft:
    """The rows of one input that no batch has had: long sentences first, rows of one length in input order.

    But with Grouping.IN_ORDER all rows are in input order. A batch is opened by the row that goes first; what else it
    may hold, and what that takes of the budget, follows from that row's tokens, `longest`.
    """

    def __init__(self, lengths: Lengths, policy: BatchPolicy, max_rows: int | None = None) -> None:
        """`lengths`: int64 `(n,)`, tokens of each row; `max_rows` of a batch, beside the policy's."""
        self._budget = policy.max_batch_tokens
        self.max_rows = min(max_rows or sys.maxsize, policy.max_batch_rows or sys.maxsize)
        """Rows of a batch that has any of these."""
        self.n_rows = lengths.size
        self._lengths, self._order = lengths, _FIRST_ROW
        if self.n_rows == 1:
            self.n_tokens = int(lengths[0])
            return
        self.n_tokens = int(lengths.sum())
        if policy.grouping is Grouping.IN_ORDER:
            self._order = np.arange(lengths.size)
        else:
            self._order = np.argsort(-lengths, kind="stable")
            self._lengths = lengths[self._order]

    @property
    def longest(self) -> int:
        """Tokens of the row that goes first."""
        raise NotImplementedError

    @property
    def batch_tokens(self) -> int:
        """Tokens of the next batch, if it has no other rows than these: about, where they do not fill it."""
        return min(self.cost(self.longest), max(self._budget, self.longest))

    def cost(self, longest: int) -> int:
        """Tokens that all rows take which may be in a batch opened by a row of `longest`; 0: none may."""
        raise NotImplementedError

    def least_cost(self, longest: int) -> int:
        """Tokens that the first of them takes."""
        raise NotImplementedError

    def room(self, longest: int, cost: int) -> int:
        """Tokens of the batch that the next row opens, where all that may be in it takes `cost`."""
        del cost
        return max(self._budget, longest)

    def take(self, longest: int, max_tokens: int, max_rows: int) -> tuple[Rows, int]:
        """The next rows for a batch opened by a row of `longest` that has room for so much, and their tokens there."""
        raise NotImplementedError


class _Equal(RowsLeft):
    def __init__(self, lengths: Lengths, policy: BatchPolicy, max_rows: int | None = None) -> None:
        super().__init__(lengths, policy, max_rows)
        if lengths.size == 1:
            self._groups = {self.n_tokens: (0, 1)}
            return
        starts = [0, *(np.flatnonzero(np.diff(self._lengths)) + 1).tolist()][: lengths.size]
        self._groups = dict(zip(self._lengths[starts].tolist(), pairwise([*starts, lengths.size]), strict=True))
        """Tokens -> where the rows of so many begin and end in `_order`."""

    @property
    def longest(self) -> int:
        return next(iter(self._groups))

    def cost(self, longest: int) -> int:
        start, end = self._groups.get(longest, (0, 0))
        return (end - start) * longest

    def least_cost(self, longest: int) -> int:
        return longest

    def room(self, longest: int, cost: int) -> int:
        """Even batches: one of a single row computes its few tokens slowly."""
        n_rows, most = cost // longest, min(self.max_rows, max(1, self._budget // longest))
        n_batches = -(-n_rows // most)
        return -(-n_rows // n_batches) * longest

    def take(self, longest: int, max_tokens: int, max_rows: int) -> tuple[Rows, int]:
        start, end = self._groups[longest]
        cut = min(end, start + min(max_tokens // longest, max_rows))
        if cut < end:
            self._groups[longest] = cut, end
        else:
            del self._groups[longest]
        n_tokens = (cut - start) * longest
        self.n_rows -= cut - start
        self.n_tokens -= n_tokens
        return self._order[start:cut], n_tokens


class _InSequence(RowsLeft):
    def __init__(self, lengths: Lengths, policy: BatchPolicy, max_rows: int | None = None) -> None:
        super().__init__(lengths, policy, max_rows)
        self._ends = np.cumsum(self._lengths) if lengths.size > 1 else self._lengths
        self._start = 0

    @property
    def longest(self) -> int:
        return int(self._lengths[self._start])

    def cost(self, longest: int) -> int:
        del longest
        return self.n_tokens

    def least_cost(self, longest: int) -> int:
        del longest
        return self.longest

    def take(self, longest: int, max_tokens: int, max_rows: int) -> tuple[Rows, int]:
        del longest
        if self.n_tokens <= max_tokens:
            return self._take(min(self.n_rows, max_rows))
        n_before = int(self._ends[-1]) - self.n_tokens
        fitting = int(np.searchsorted(self._ends, n_before + max_tokens, side="right"))
        return self._take(min(fitting - self._start, max_rows))

    def _take(self, n_rows: int) -> tuple[Rows, int]:
        start, end = self._start, self._start + n_rows
        n_tokens = self.n_tokens if n_rows == self.n_rows else int(self._lengths[start:end].sum())
        self._start = end
        self.n_rows -= n_rows
        self.n_tokens -= n_tokens
        return self._order[start:end], n_tokens


class _Padded(_InSequence):
    """What joins a batch that another input has opened is at most doubled by padding."""

    def cost(self, longest: int) -> int:
        return self._n_fitting(longest) * longest

    def least_cost(self, longest: int) -> int:
        return longest

    def take(self, longest: int, max_tokens: int, max_rows: int) -> tuple[Rows, int]:
        rows, _ = self._take(min(self._n_fitting(longest), max_tokens // longest, max_rows))
        return rows, rows.size * longest

    def _n_fitting(self, longest: int) -> int:
        if not self.n_rows or longest < self.longest:
            return 0
        if longest == self.longest:
            return self.n_rows
        return int(np.searchsorted(-self._lengths[self._start :], -(longest // 2), side="right"))


_ROWS_LEFT: Mapping[Grouping, type[RowsLeft]] = {
    Grouping.EQUAL: _Equal,
    Grouping.MIXED: _InSequence,
    Grouping.PADDED: _Padded,
    Grouping.IN_ORDER: _InSequence,
}


def rows_left(lengths: Lengths, policy: BatchPolicy, max_rows: int | None = None) -> RowsLeft:
    """All rows of `lengths`, int64 `(n,)`; their batches have at most `max_rows` rows, nor more than the policy's."""
    return _ROWS_LEFT[policy.grouping](lengths, policy, max_rows)


class _Batch:
    """A batch in the making, opened by a row of `longest`, and what it has room for."""

    def __init__(self, longest: int, room: int) -> None:
        self._longest, self.room = longest, room
        self._max_rows, self._n_rows = sys.maxsize, 0

    def take(self, left: RowsLeft, max_tokens: int, n_sharing: int) -> tuple[Rows, int]:
        """What fits of `left` into so many tokens, and the tokens; where rows are limited, a share of those."""
        max_rows = min(self._max_rows, left.max_rows) - self._n_rows
        if max_rows < 1 or max_tokens < left.least_cost(self._longest):
            return _NO_ROWS, 0
        rows, n_tokens = left.take(self._longest, max_tokens, max(1, max_rows // n_sharing))
        self._max_rows = min(self._max_rows, left.max_rows)
        self._n_rows += rows.size
        self.room -= n_tokens
        return rows, n_tokens

    def share_out(self, several: Sequence[RowsLeft]) -> list[tuple[Rows, int]]:
        """The same of each: who has little is taken whole, and the others share evenly what room is left, in tokens."""
        costs = [left.cost(self._longest) for left in several]
        taken = [(_NO_ROWS, 0)] * len(several)
        n_sharing = len(several) - costs.count(0)
        for place in sorted(range(len(several)), key=costs.__getitem__)[len(several) - n_sharing :]:
            share = max(self.room // n_sharing, several[place].least_cost(self._longest))
            taken[place] = self.take(several[place], min(share, self.room), n_sharing)
            n_sharing -= 1
        return taken


def take_batch(opener: RowsLeft, others: Sequence[RowsLeft] = ()) -> list[tuple[Rows, int]]:
    """The next batch: rows of the opener, at least one, and of each of the others, maybe none, with their tokens there.

    All are of one policy. Who has little that fits is taken whole; the rest of the room is shared evenly, in tokens.
    """
    longest = opener.longest
    if not others:
        return [opener.take(longest, opener.room(longest, opener.cost(longest)), opener.max_rows)]
    cost = sum(left.cost(longest) for left in (opener, *others))
    batch = _Batch(longest, opener.room(longest, cost))
    first, n_tokens = batch.take(opener, longest, opener.max_rows)
    (more, n_more_tokens), *taken = batch.share_out([opener, *others])
    return [(np.concatenate([first, more]), n_tokens + n_more_tokens), *taken]


def make_batches(lengths: Lengths, policy: BatchPolicy, max_rows: int | None = None) -> list[Rows]:
    """Groups of rows to run together: int64 arrays that hold every row of `lengths`, int64 `(n,)`, exactly once.

    A batch has at most `policy.max_batch_tokens` tokens, padding included, unless it is one sentence, and at most
    `max_rows` rows, nor more than `policy.max_batch_rows`.
    """
    left, batches = rows_left(lengths, policy, max_rows), list[Rows]()
    while left.n_rows:
        batches += (rows for rows, _ in take_batch(left))
    return batches
