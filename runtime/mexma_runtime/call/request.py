"""Sentences that a call has computed together with those of others."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

import numpy as np

from mexma_runtime.backends.base import Backend, Finish, done
from mexma_runtime.batching import Rows, RowsLeft
from mexma_runtime.errors import InputError
from mexma_runtime.types import Ragged, Vectors


class CancelSignal(Protocol):
    """Whatever says that a call is no longer wanted: a threading.Event, say."""

    def is_set(self) -> bool:
        """Whether to stop."""


@dataclass(eq=False, kw_only=True)
class Request:
    """Rows of one call that wait for the engine, and what becomes of them."""

    ragged: Ragged
    left: RowsLeft
    """Rows that no batch has had."""
    in_graph: bool
    """Whether the engine gives vectors length 1."""
    first_index: int
    """What errors count sentences from."""
    deadline: float
    """By time.monotonic; math.inf: none."""
    cancel: CancelSignal | None
    wake: Callable[[], None] = lambda: None
    """Called, in another thread, whenever vectors have come, or none will."""
    parts: deque[tuple[Rows, Vectors]] = field(default_factory=deque)
    """Vectors that have come, and of which rows: its own thread takes them, and writes them where they belong."""
    error: BaseException | None = None
    """Why no more vectors come."""
    is_hopeless: bool = False
    """Whether none come because the call is cancelled, or will be late."""
    is_gone: bool = False
    """Whether the call has ended."""

    @property
    def kind(self) -> bool:
        """The engine gives length 1 to all vectors of a batch or to none."""
        return self.in_graph

    def is_ended(self, now: float) -> bool:
        """Whether the call has ended, was cancelled, or is late by time.monotonic."""
        if self.is_gone or now >= self.deadline:
            return True
        try:
            return self.cancel is not None and self.cancel.is_set()
        except Exception:  # noqa: BLE001 - the call asks as well, in its own thread, and it is raised there
            return False

    def give_up(self) -> None:
        """Compute no more of it: the call is cancelled, or will be late."""
        self.is_hopeless = True
        self.wake()


Shares = Sequence[tuple[Request, Rows]]
"""Whose rows are in a batch."""


class JoinedBatch:
    """Rows of several requests, computed in memory of its own; what is done early is handed out at once."""

    def __init__(self, shares: Shares, dim: int) -> None:
        self.shares, self._dim = shares, dim
        self.made_s = time.monotonic()
        self.error: Exception | None = None
        """What went wrong."""
        self._vectors: Vectors
        self._finish: Finish = done
        self._ends = list(accumulate(rows.size for _, rows in shares))
        self._early = set[int]()
        """Rows of the batch that were handed out before it ended."""

    def start(self, backend: Backend) -> None:
        """Start it on `backend`."""
        first, first_rows = self.shares[0]
        try:
            ragged = Ragged.joined([request.ragged.select(rows) for request, rows in self.shares])
            self._vectors = np.empty((len(ragged), self._dim), dtype=np.float32)
            self._finish = backend.start(ragged, self._vectors, normalize=first.in_graph, on_rows=self._deliver_early)
        except InputError as error:
            # It is told where all rows are of one request.
            self.error = InputError(str(error), index=first.first_index + int(first_rows[0]))
        except Exception as error:  # noqa: BLE001 - whoever waits for it gets it
            self.error = error

    def finish(self) -> None:
        """Wait until it is done."""
        try:
            self._finish()
        except Exception as error:  # noqa: BLE001
            self.error = error

    @property
    def is_partly_out(self) -> bool:
        """Whether a part of it was done before it ended or failed."""
        return bool(self._early)

    def deliver(self) -> None:
        """Hand out all vectors that are not out."""
        start = 0
        for end in self._ends:
            if not self._early:
                self._hand_out(start, end)
            else:
                for row in range(start, end):
                    if row not in self._early:
                        self._hand_out(row, row + 1)
            start = end

    def left(self) -> Shares:
        """What is not out."""
        numbers = iter(range(self._ends[-1]))
        left = [(request, rows[[next(numbers) not in self._early for _ in rows]]) for request, rows in self.shares]
        return [(request, rows) for request, rows in left if rows.size]

    def _deliver_early(self, rows: Rows) -> None:
        for row in rows.tolist():
            self._early.add(row)
            self._hand_out(row, row + 1)

    def _hand_out(self, start: int, end: int) -> None:
        """Rows of one request. Nothing here lets go of the interpreter, for which it would have to wait then."""
        share = bisect_right(self._ends, start)
        request, rows = self.shares[share]
        first = self._ends[share] - rows.size
        request.parts.append((rows[start - first : end - first], self._vectors[start:end]))
        request.wake()
