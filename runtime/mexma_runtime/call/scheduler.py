"""Many calls, one engine: a call alone has it batch by batch; what waits meanwhile is joined."""

from __future__ import annotations

import _thread
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable

from mexma_runtime.backends.base import Backend
from mexma_runtime.call.fair_queue import FairQueue
from mexma_runtime.call.request import JoinedBatch, Request
from mexma_runtime.call.turns import IsReady, Turns
from mexma_runtime.errors import (
    DeviceMemoryError,
    EncoderBusyError,
    EncoderClosedError,
    EngineFailedError,
    InputError,
    MexmaError,
    UsageError,
)
from mexma_runtime.process import NATIVE

FOREVER_S = 3600.0
OPTIMISM = 0.5
"""A batch is expected to take at least so much of the time of the fastest one so far."""


class Scheduler:
    """Hands the engine from call to call.

    A call that finds it free, with nobody waiting, runs its own batch in its own thread. Otherwise its rows wait as a
    Request, and a thread of the scheduler, the batcher, runs batches of whatever waits until nothing does. There may be
    as many batchers as batches may be under way. At most `max_waiting` calls are admitted beyond the first; the next is
    refused with EncoderBusyError.
    """

    def __init__(self, backend: Backend, *, dim: int, max_waiting: int) -> None:
        if max_waiting < 0:
            raise UsageError(f"max_waiting: expected 0 or more, got {max_waiting}")
        self._backend, self._dim, self._max_waiting = backend, dim, max_waiting
        self.process = os.getpid()
        """The one whose engine it is."""
        self.turns = Turns()
        self._admitting = threading.RLock()
        self._closing = threading.RLock()
        # An interrupt between two statements must not leave a place, or the engine, taken for ever.
        self._calls: weakref.WeakSet[object] = weakref.WeakSet()
        info = backend.info
        # Callers take no lock that batchers take: with many of them, those would wait for the interpreter each time.
        self._inbox: deque[Request] = deque()
        self._mutex = threading.Lock()
        self._queue: FairQueue[Request] = FairQueue(info.policy.max_batch_tokens)
        self._max_batchers = info.n_pending
        self._batchers: weakref.WeakSet[_Batcher] = weakref.WeakSet()
        self._batch_s = 0.0
        self._failure: str | None = None

    @property
    def n_waiting(self) -> int:
        """Requests that have rows which no batch has had."""
        return len(self._inbox) + len(self._queue)

    def enter(self, call: object) -> None:
        """Admit one call."""
        with self._admitting:
            self._refuse_if_ended()
            if len(self._calls) > self._max_waiting:
                raise EncoderBusyError(
                    f"{len(self._calls)} calls are running or waiting, all that max_waiting={self._max_waiting} "
                    "admits: try again later, or load the encoder with a larger max_waiting"
                )
            self._calls.add(call)

    def leave(self, call: object) -> None:
        """End one admitted call; where an interrupt has kept it from passing on the engine, that is done here."""
        self.turns.pass_on(call)
        self._calls.discard(call)
        if self._ensure_batcher():
            self._wake_waiting()

    def join(self, request: Request) -> None:
        """Have the rows of `request` computed together with what else waits, until it `is_gone`."""
        self._refuse_if_ended()
        self._inbox.append(request)

    def help(self) -> bool:
        """See to it that somebody runs batches while rows wait; True: there is no other, and this thread has run one.

        Called by whoever waits for rows, each time it was woken in vain.
        """
        if not (batcher := self._ensure_batcher()):
            return False
        self._run_batches(batcher, n_batches=1)
        return True

    def close(self) -> None:
        """Refuse all turns for good, wait for the running batch and release the engine; calling it twice is fine."""
        self.turns.close()
        with self._closing:
            try:
                self.turns.take(self, _wait, closing=True)
                self._fail_waiting()
                with NATIVE:
                    self._backend.close()
            finally:
                self.turns.pass_on(self)

    def _refuse_if_ended(self) -> None:
        self.turns.refuse_if_closed()
        if self._failure:
            raise EngineFailedError(self._failure)

    def _ensure_batcher(self) -> _Batcher | None:
        """Start a batcher if rows wait and there may be one more; one that is returned has no thread."""
        if not self.n_waiting or len(self._batchers) >= self._max_batchers:
            return None
        batcher = _Batcher()
        try:
            with self._admitting:
                if len(self._batchers) >= self._max_batchers:
                    return None
                self._batchers.add(batcher)
            if NATIVE.is_ending:  # no other thread may begin anything
                return batcher
            _thread.start_new_thread(self._run_batches, (batcher,))
        except RuntimeError:  # no thread can be had
            return batcher
        except BaseException:
            self._batchers.discard(batcher)
            raise
        return None

    def _run_batches(self, batcher: _Batcher, n_batches: int = sys.maxsize) -> None:
        try:
            while n_batches and self._run_batch(batcher):
                n_batches -= 1
        except SystemExit:  # the process ends, and this thread with it; who outlives it goes on with what waits
            self._fail(batcher.requests, SystemExit())
            raise
        except BaseException as error:
            self._fail([*batcher.requests, *self._remove_all()], error)  # a fault of ours: nobody is to wait for ever
            raise
        finally:
            # In this order: whoever joins looks for a batcher behind its request.
            self._batchers.discard(batcher)
            if self.n_waiting:
                self._wake_waiting()

    def _wake_waiting(self) -> None:
        """Let those that wait see to a batcher themselves."""
        with self._mutex:
            waiting = [*self._queue, *self._inbox]
        for request in waiting:
            request.wake()

    def _run_batch(self, batcher: _Batcher) -> bool:
        """Run the next batch; False: there is none."""
        try:
            batch = self._compute(batcher)
        except EncoderClosedError:
            self._fail_waiting()
            return False
        if batch is None:
            return False
        if batch.error is None:
            batch_s = OPTIMISM * (time.monotonic() - batch.made_s)
            self._batch_s = min(batch_s, self._batch_s or batch_s)
            batch.deliver()
        elif not self._narrow(batch, batcher) and len(batch.shares) > 1:
            self._failure = (
                f"the engine failed for each of {len(batch.shares)} calls whose sentences were in one batch: load the "
                f"bundle again. It said: {batch.error}"
            )
            self._fail_waiting()
        batcher.requests = []
        return True

    def _compute(self, batcher: _Batcher, batch: JoinedBatch | None = None) -> JoinedBatch | None:
        """Run `batch`, or whatever is next when it is the batcher's turn; its `error` is what went wrong."""
        try:
            self.turns.take(batcher, _wait)
            with NATIVE:  # before anything is taken from the queue: a process that ends lets no batch begin
                if batch := batch or self._next_batch(batcher):
                    batch.start(self._backend)
        finally:
            self.turns.pass_on(batcher)
        if batch:
            batch.finish()
        return batch

    def _next_batch(self, batcher: _Batcher) -> JoinedBatch | None:
        with self._mutex:
            while self._inbox:
                self._queue.add(self._inbox.popleft())
            hopeless = self._queue.remove_hopeless(time.monotonic(), self._batch_s)
            shares = self._queue.next_batch()
            batcher.requests = [request for request, _ in shares]
        for request in hopeless:
            request.give_up()
        return JoinedBatch(shares, self._dim) if shares else None

    def _narrow(self, batch: JoinedBatch, batcher: _Batcher) -> bool:
        """Compute the halves of what is left of a batch that failed, so that the guilty request fails alone.

        Whether any has not failed, or only because of its input.
        """
        error, failed, is_well = batch.error, batch.left(), batch.is_partly_out
        assert error is not None
        half = len(failed) // 2
        if not half:
            self._fail([request for request, _ in failed], error)
            return is_well or isinstance(error, (InputError, DeviceMemoryError, MemoryError))
        for shares in (failed[:half], failed[half:]):
            wanted = []
            for request, rows in shares:
                if request.is_ended(time.monotonic()):
                    request.give_up()
                else:
                    wanted.append((request, rows))
            if not wanted:
                is_well = True
                continue
            part = JoinedBatch(wanted, self._dim)
            try:
                self._compute(batcher, part)
            except EncoderClosedError as closed:
                part.error = closed
            if part.error is None:
                part.deliver()
                is_well = True
            else:
                is_well |= self._narrow(part, batcher)
        return is_well

    def _remove_all(self) -> list[Request]:
        with self._mutex:
            waiting = [*self._queue.remove_all(), *self._inbox]
            self._inbox.clear()
        return waiting

    def _fail_waiting(self) -> None:
        for request in self._remove_all():
            try:
                self._refuse_if_ended()
            except MexmaError as error:  # one for each: they are raised in threads of their own
                self._fail([request], error)

    def _fail(self, requests: Iterable[Request], error: BaseException) -> None:
        for request in requests:
            with self._mutex:
                self._queue.remove(request)
            request.error = request.error or error
            request.wake()


class _Batcher:
    """A thread that runs batches, and those whose rows it has in hand."""

    def __init__(self) -> None:
        self.requests: list[Request] = []


def _wait(is_ready: IsReady) -> None:
    while not is_ready(FOREVER_S):
        pass
