"""One call: its deadline, its cancel signal, its turns and its batches, all done when it is left."""

from __future__ import annotations

import functools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TypeAlias

from mexma_runtime.batching import Rows
from mexma_runtime.call.pending import PendingBatches
from mexma_runtime.call.request import CancelSignal, Request
from mexma_runtime.call.scheduler import FOREVER_S, Scheduler
from mexma_runtime.call.turns import IsReady
from mexma_runtime.errors import EncodeCancelledError, EncodeTimeoutError
from mexma_runtime.process import NATIVE, require_process
from mexma_runtime.types import Vectors

Take: TypeAlias = Callable[[Rows, Vectors], None]
"""Is given rows of a request and their vectors, float32 `(n, dim)`."""
POLL_S = 0.05
"""How often a waiting call looks whether it was cancelled."""


class Call:
    """A context manager that holds one place among the admitted calls, and up to `max_pending` batches."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        timeout_s: float | None = None,
        cancel: CancelSignal | None = None,
        max_pending: int = 1,
    ) -> None:
        self._scheduler = scheduler
        self._timeout_s = timeout_s
        self.deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        """By time.monotonic."""
        self.cancel = cancel
        self._error: BaseException | None = None
        self._n_left = 0
        self.pending = PendingBatches(max_pending)

    def __enter__(self) -> Call:
        self._scheduler.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_lost():
            return
        failure = self.pending.finish_in_any_case()
        self._scheduler.leave(self)
        if failure and (error is None or not isinstance(failure, Exception)):
            raise failure

    @contextmanager
    def turn(self, *, alone: bool) -> Iterator[bool]:
        """Hold the engine for one batch, and say so; `alone`: only if nobody has it or waits.

        Raises as `check` does, and EncoderClosedError.
        """
        self.check()
        turns = self._scheduler.turns
        try:
            if not alone:
                turns.take(self, self.wait)
            elif self._scheduler.n_waiting or not turns.take_free(self):
                yield False
                return
            with NATIVE:
                yield True
        finally:
            turns.pass_on(self)

    def join(self, request: Request, take: Take) -> None:
        """Let `take` have the vectors of all rows that `request` has left, as they come.

        Raises as `check` does, what went wrong with its rows, EngineFailedError and EncoderClosedError.
        """
        bell = SimpleQueue[None]()
        with self.joined(request, functools.partial(bell.put, None)):
            while not self.take_parts(request, take):
                if not self.help():
                    self.wait(functools.partial(_is_rung, bell))

    @contextmanager
    def joined(self, request: Request, wake: Callable[[], None]) -> Iterator[None]:
        """Let the rows of `request` wait for the engine; `wake` is called in another thread, see Request."""
        self.check()
        request.wake, self._n_left = wake, request.left.n_rows
        try:
            self._scheduler.join(request)
            yield
        finally:
            request.is_gone = True

    def take_parts(self, request: Request, take: Take) -> bool:
        """Let `take` have what has come, and say whether that was all; raises as `join` does."""
        while request.parts:
            rows, vectors = request.parts.popleft()
            take(rows, vectors)
            self._n_left -= rows.size
        if not self._n_left:
            return True
        if request.error is not None:
            raise request.error
        self.check()
        if request.is_hopeless:
            raise self._too_late() if self.deadline < math.inf else self._cancelled()
        return False

    def help(self) -> bool:
        """Run a batch in this thread where there is no other that does, and say so."""
        return self._scheduler.help()

    def check(self) -> None:
        """Raise EncodeCancelledError, EncodeTimeoutError or what `fail` was given, where the call should end.

        EncoderClosedError in a fork.
        """
        require_process(self._scheduler.process)
        if self._error is not None:
            raise self._error
        if self.cancel is not None and self.cancel.is_set():
            raise self._cancelled()
        if time.monotonic() >= self.deadline:
            raise self._too_late()

    def is_lost(self) -> bool:
        """Whether the threads that it would wait for are not there: in a fork, and where the interpreter has ended."""
        return os.getpid() != self._scheduler.process or sys.is_finalizing()

    def fail(self, error: BaseException | None) -> None:
        """End the call with `error`, from any thread, at its next check; None does nothing."""
        self._error = self._error or error

    def wait(self, is_ready: IsReady) -> None:
        """Block until `is_ready` says so; raises as `check` does."""
        while True:
            step_s = FOREVER_S if self.cancel is None else POLL_S
            if is_ready(max(0.0, min(step_s, self.deadline - time.monotonic()))):
                return
            self.check()

    def _cancelled(self) -> EncodeCancelledError:
        return EncodeCancelledError("the call was cancelled; the encoder stays usable")

    def _too_late(self) -> EncodeTimeoutError:
        return EncodeTimeoutError(
            f"the call did not finish within {self._timeout_s} s; the encoder stays usable: "
            "give it more time or fewer sentences"
        )


def _is_rung(bell: SimpleQueue[None], seconds: float) -> bool:
    try:
        bell.get(timeout=seconds)
    except Empty:
        return False
    return True
