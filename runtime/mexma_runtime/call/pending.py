"""Batches that were started and are not finished."""

from __future__ import annotations

from collections import deque

from mexma_runtime.backends.base import Finish


class PendingBatches:
    """The batches of one call that are under way, at most `limit`, the oldest first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pending: deque[Finish] = deque()
        self._n_finished = 0

    @property
    def n_started(self) -> int:
        """Batches that were started so far."""
        return self._n_finished + len(self._pending)

    def add(self, finish: Finish) -> None:
        """One more; waits until there are no more than `limit`, and where that is 1 for this one too."""
        self._pending.append(finish)
        while len(self._pending) > (self._limit if self._limit > 1 else 0):
            self._finish_one()

    def finish(self, n_batches: int | None = None) -> None:
        """Finish the first `n_batches` that were ever started; None: all."""
        while self._pending and (n_batches is None or self._n_finished < n_batches):
            self._finish_one()

    def is_finished(self, n_batches: int) -> bool:
        """Whether that has nothing to wait for."""
        return self._n_finished >= n_batches

    def finish_in_any_case(self) -> BaseException | None:
        """Finish all, whatever has happened: they write into the caller's memory. Returns the first error."""
        failure: BaseException | None = None
        while self._pending:
            try:
                self._finish_one()
            except BaseException as error:  # noqa: BLE001 - an interrupt, too: the others have to be finished
                failure = failure or error
        return failure

    def _finish_one(self) -> None:
        finish = self._pending.popleft()
        self._n_finished += 1
        finish()
