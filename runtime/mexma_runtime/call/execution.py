"""The way of token ids through an engine: checked, planned, started in turns, written into the caller's rows."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from mexma_runtime.backends.base import Backend, Finish
from mexma_runtime.batching import plan_batches
from mexma_runtime.bundle.manifest import Manifest
from mexma_runtime.call.scheduler import Call
from mexma_runtime.device_vectors import DeviceRows
from mexma_runtime.errors import InputError
from mexma_runtime.types import Ragged, Vectors


class PendingBatches:
    """The batches of one call that were started and are not finished, at most `limit`, the oldest first.

    Leaving the context finishes all, whatever has happened: they write into the caller's memory.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pending: deque[Finish] = deque()
        self._n_finished = 0

    @property
    def n_started(self) -> int:
        """Batches so far."""
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

    def __enter__(self) -> PendingBatches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failure: Exception | None = None
        while self._pending:
            try:
                self._finish_one()
            except Exception as this:  # noqa: BLE001 - the others have to be finished all the same
                failure = failure or this
        if failure and error is None:
            raise failure

    def _finish_one(self) -> None:
        finish = self._pending.popleft()
        self._n_finished += 1
        finish()


def embed(
    backend: Backend,
    ragged: Ragged,
    out: Vectors | DeviceRows,
    call: Call,
    pending: PendingBatches,
    *,
    normalize: bool,
    max_rows: int | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> None:
    """Start batches that write the vector of each sentence of `ragged` into its row of `out`, `(n, dim)`.

    All are done when `pending` says so. Takes a turn for each batch, so it raises what `Call.turn` raises; `on_rows`
    is called as each is done, with the number of rows done so far.
    """
    info = backend.info
    scratch: Vectors | None = None
    n_done = 0

    def finished(finish: Finish, rows: NDArray[np.int64], written: Vectors | None) -> None:
        nonlocal n_done
        finish()
        if written is not None:
            assert isinstance(out, np.ndarray)
            out[rows] = written
        n_done += rows.size
        if on_rows:
            on_rows(n_done)

    for rows in plan_batches(ragged.lengths, info.policy, max_rows):
        n_rows, first = rows.size, int(rows[0])
        is_consecutive = n_rows == 1 or bool(np.all(np.diff(rows) == 1))
        batch = ragged.part(first, first + n_rows) if is_consecutive else ragged.take(rows)
        written: Vectors | None = None
        if not is_consecutive:
            # What is under way keeps its own.
            assert isinstance(out, np.ndarray)
            if scratch is None or len(scratch) < n_rows or info.n_pending > 1:
                scratch = np.empty((n_rows, out.shape[1]), dtype=np.float32)
            written = scratch[:n_rows]
        with call.turn():
            finish = backend.start(
                batch, out[first : first + n_rows] if written is None else written, normalize=normalize
            )
        pending.add(functools.partial(finished, finish, rows, written))


def check_ids(ragged: Ragged, manifest: Manifest, *, first_index: int = 0) -> None:
    """Raise InputError, which names the sentence, for ids or lengths that the model has no rows for."""
    if not isinstance(ragged, Ragged):
        raise InputError(f"expected a Ragged, got {type(ragged).__name__}: Ragged.from_sequences makes one of lists")
    max_tokens, vocab_size = manifest.text.max_tokens, manifest.model.vocab_size
    lengths = ragged.lengths
    bad_rows = np.flatnonzero((lengths < 1) | (lengths > max_tokens))
    if bad_rows.size:
        row = int(bad_rows[0])
        raise InputError(f"expected 1 to {max_tokens} tokens, got {lengths[row]}", index=first_index + row)
    bad_ids = np.flatnonzero((ragged.ids < 0) | (ragged.ids >= vocab_size))
    if bad_ids.size:
        row = int(np.searchsorted(ragged.offsets, bad_ids[0], side="right")) - 1
        raise InputError(
            f"expected token ids from 0 to {vocab_size - 1}, got {ragged.ids[bad_ids[0]]}", index=first_index + row
        )
