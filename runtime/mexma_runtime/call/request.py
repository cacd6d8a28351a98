"""Sentences that a call has computed together with those of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mexma_runtime.backends.base import Backend, Finish, done
from mexma_runtime.batching import Rows, RowsLeft
from mexma_runtime.device_vectors import DeviceRows
from mexma_runtime.errors import InputError
from mexma_runtime.types import Ragged, Vectors
from mexma_runtime.vectors import normalize_rows


class CancelSignal(Protocol):
    """Whatever says that a call is no longer wanted: a threading.Event, say."""

    def is_set(self) -> bool:
        """Whether to stop."""


@dataclass(eq=False, kw_only=True)
class Request:
    """Rows of one call that wait for the engine, and what becomes of them."""

    ragged: Ragged
    out: Vectors | DeviceRows
    """Where their vectors go: float32 `(n, dim)`, the caller's; what stays on a device does not wait here."""
    left: RowsLeft
    """Rows that no batch has had."""
    normalize: bool
    """Whether vectors get length 1."""
    in_graph: bool
    """Whether the engine sees to it."""
    first_index: int
    """What errors count sentences from."""
    deadline: float
    """By time.monotonic; math.inf: none."""
    cancel: CancelSignal | None
    wake: Callable[[], None] = lambda: None
    """Called, in another thread, when all rows are done, or there is an error, or it is hopeless."""
    reports: bool = False
    """Whether to wake whenever some rows are done."""
    n_left: int = 0
    """Rows that are not done, of those that were left when it began to wait."""
    error: BaseException | None = None
    """Why no more vectors come."""
    is_hopeless: bool = False
    """Whether it was given up: the call is cancelled, or will be late."""
    is_gone: bool = False
    """Whether the call has ended, and `out` is not to be touched."""

    @property
    def kind(self) -> bool:
        """The engine gives length 1 to all vectors of a batch or to none."""
        return self.in_graph

    def is_unwanted(self) -> bool:
        """Whether the call was cancelled."""
        return self.cancel is not None and self.cancel.is_set()


Shares = Sequence[tuple[Request, Rows]]
"""Whose rows are in a batch."""


class JoinedBatch:
    """Rows of several requests, computed in memory of its own."""

    def __init__(self, shares: Shares, dim: int) -> None:
        self.shares = shares
        self.error: Exception | None = None
        """What went wrong."""
        self._ragged = Ragged.joined([request.ragged.select(rows) for request, rows in shares])
        self._vectors = np.empty((len(self._ragged), dim), dtype=np.float32)
        self._finish: Finish = done

    @property
    def n_tokens(self) -> int:
        """Of all rows."""
        return self._ragged.ids.size

    def start(self, backend: Backend) -> None:
        """Start it on `backend`."""
        first, rows = self.shares[0]
        try:
            self._finish = backend.start(self._ragged, self._vectors, normalize=first.in_graph)
        except InputError as error:
            self.error = InputError(str(error), index=first.first_index + int(rows[0]))  # told if it is the only one
        except Exception as error:  # noqa: BLE001 - whoever waits for it gets it
            self.error = error

    def finish(self) -> None:
        """Wait until it is done, and give the vectors of those that want it length 1."""
        try:
            self._finish()
        except Exception as error:  # noqa: BLE001
            self.error = error
        wanted = [request.normalize and not request.in_graph for request, _ in self.shares]
        if all(wanted):
            normalize_rows(self._vectors)
        elif any(wanted):
            for is_wanted, (_, _, vectors) in zip(wanted, self._parts(), strict=True):
                if is_wanted:
                    normalize_rows(vectors)

    def deliver(self) -> None:
        """Write all vectors where they belong."""
        for request, rows, vectors in self._parts():
            if not request.is_gone:
                assert isinstance(request.out, np.ndarray)
                request.out[rows] = vectors
                request.n_left -= rows.size

    def _parts(self) -> Iterator[tuple[Request, Rows, Vectors]]:
        end = 0
        for request, rows in self.shares:
            start, end = end, end + rows.size
            yield request, rows, self._vectors[start:end]
