"""What waits for the engine, and which of it makes the next batch. Pure: no thread, no clock."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, Protocol, TypeVar

from mexma_runtime.batching import Rows, RowsLeft, take_batch


class Waiting(Protocol):
    """Rows that wait together, for one call."""

    @property
    def left(self) -> RowsLeft:
        """Those that no batch has had."""

    @property
    def kind(self) -> Hashable:
        """Only what is of one kind may be in a batch together."""

    @property
    def deadline(self) -> float:
        """When they have to be done, by the clock of `remove_hopeless`; math.inf: whenever."""

    def is_ended(self, now: float) -> bool:
        """Whether the call has ended, was cancelled, or is late."""


Asked = TypeVar("Asked", bound=Waiting)


class FairQueue(Generic[Asked]):
    """Deficit round robin (Shreedhar and Varghese, 1995), in tokens; a batch with room left takes others' rows along.

    In a round, each request may open batches of `quantum` tokens, the nearest deadline first; who comes meanwhile is in
    the next. While somebody waits who has had no turn yet, a turn is one batch; the rest of it is kept. So nobody waits
    longer than for a turn of each of the others, whatever their number of rows.

    Rows that are taken along count as well, up to the next turn. Who could fill a batch is not taken along: it would
    make a short one long for whoever has opened it.
    """

    def __init__(self, quantum: int) -> None:
        """`quantum`: the tokens of a full batch."""
        self._quantum = quantum
        self._round: dict[Asked, None] = {}
        self._next_round: dict[Asked, None] = {}
        self._deficits: dict[Asked, int] = {}
        self._had_turn: set[Asked] = set()
        """In this round."""
        self._newcomers: set[Asked] = set()
        """Who has had no turn yet."""

    def __len__(self) -> int:
        return len(self._deficits)

    def __iter__(self) -> Iterator[Asked]:
        return iter(self._deficits)

    def add(self, request: Asked) -> None:
        """Let `request`, which has rows left, wait."""
        self._deficits[request] = 0
        self._next_round[request] = None
        self._newcomers.add(request)

    def remove(self, request: Asked) -> None:
        """Let it wait no more; nothing where it did not."""
        for waiting in (self._round, self._next_round, self._deficits):
            waiting.pop(request, None)
        self._had_turn.discard(request)
        self._newcomers.discard(request)

    def remove_all(self) -> list[Asked]:
        """All that wait, which then do no more."""
        waiting = list(self._deficits)
        for request in waiting:
            self.remove(request)
        return waiting

    def remove_hopeless(self, now: float, batch_s: float) -> list[Asked]:
        """Those that have ended, or will be late if a batch takes at least `batch_s` seconds.

        But where all would be late, they may still try.
        """
        ended, hopeless = list[Asked](), list[Asked]()
        for request in self._deficits:
            n_batches = -(-request.left.n_tokens // self._quantum)
            if request.is_ended(now):
                ended.append(request)
            elif now + n_batches * batch_s >= request.deadline:
                hopeless.append(request)
        if len(ended) + len(hopeless) < len(self._deficits):
            ended += hopeless
        for request in ended:
            self.remove(request)
        return ended

    def next_batch(self) -> list[tuple[Asked, Rows]]:
        """The rows of the next batch and whose they are; nothing where nobody waits."""
        if not self._deficits:
            return []
        opener = self._opener()
        longest = opener.left.longest
        others = [
            request
            for request in (*self._round, *self._next_round)
            if request is not opener and request.kind == opener.kind and request.left.cost(longest) < self._quantum
        ]
        taken = take_batch(opener.left, [other.left for other in others])
        batch = []
        for request, (rows, n_tokens) in zip((opener, *others), taken, strict=True):
            if rows.size:
                batch.append((request, rows))
                self._deficits[request] = max(self._deficits[request] - n_tokens, -self._quantum)
                if not request.left.n_rows:
                    self.remove(request)
        return batch

    def _opener(self) -> Asked:
        while True:
            if not self._round:
                self._round, self._next_round = self._next_round, {}
                self._had_turn.clear()
            request = min(self._round, key=_deadline)
            goes_on = request in self._had_turn
            if not goes_on:
                self._had_turn.add(request)
                self._newcomers.discard(request)
                self._deficits[request] = min(self._deficits[request], self._quantum) + self._quantum
            has_enough = self._deficits[request] >= min(request.left.batch_tokens, self._quantum)
            if has_enough and not (goes_on and self._newcomers):
                return request
            # Only now, so that whoever came during its batches is in front of it.
            del self._round[request]
            self._next_round[request] = None


def _deadline(request: Waiting) -> float:
    return request.deadline
