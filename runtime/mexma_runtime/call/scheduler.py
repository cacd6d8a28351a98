"""Whose turn it is: many calls share one engine, a batch at a time, first come first served."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, TypeAlias

from mexma_runtime.call.pending import PendingBatches
from mexma_runtime.errors import (
    EncodeCancelledError,
    EncoderBusyError,
    EncoderClosedError,
    EncodeTimeoutError,
    UsageError,
)
from mexma_runtime.process import NATIVE, require_process

POLL_S = 0.05
"""How often a waiting call looks whether it was cancelled."""
FOREVER_S = 3600.0

IsReady: TypeAlias = Callable[[float], bool]
"""Waits for up to so many seconds and says whether what was waited for is there."""


class CancelSignal(Protocol):
    """Whatever says that a call is no longer wanted: a threading.Event, say."""

    def is_set(self) -> bool:
        """Whether to stop."""


class Scheduler:
    """Hands the engine from call to call; a call takes a turn for each batch, so concurrent calls interleave.

    At most `max_waiting` calls are admitted beyond the first; the next is refused with EncoderBusyError.
    """

    def __init__(self, *, max_waiting: int) -> None:
        if max_waiting < 0:
            raise UsageError(f"max_waiting: expected 0 or more, got {max_waiting}")
        self._max_waiting = max_waiting
        self.process = os.getpid()
        """The one whose engine it is."""
        self._mutex = threading.Lock()
        # An interrupt between two statements must not leave a place, or the engine, taken for ever.
        self._calls: weakref.WeakSet[Call] = weakref.WeakSet()
        self._owner: Call | None = None
        self._is_closed = False
        self._queue: deque[tuple[Call, threading.Lock]] = deque()

    def call(self, *, timeout_s: float | None = None, cancel: CancelSignal | None = None, max_pending: int = 1) -> Call:
        """A context manager that holds one place among the admitted calls, and up to `max_pending` batches."""
        return Call(self, timeout_s=timeout_s, cancel=cancel, max_pending=max_pending)

    def close(self) -> bool:
        """Wait for the running batch, then refuse all turns for good; False where it was closed already."""
        with self._mutex:
            if self._is_closed:
                return False
            self._is_closed = True
        last = self.call()
        self.take(last, closing=True)
        return True

    def enter(self, call: Call) -> None:
        """Admit one call."""
        with self._mutex:
            self._refuse_if_closed()
            if len(self._calls) > self._max_waiting:
                raise EncoderBusyError(
                    f"{len(self._calls)} calls are running or waiting, all that max_waiting={self._max_waiting} "
                    "admits: try again later, or load the encoder with a larger max_waiting"
                )
            self._calls.add(call)

    def leave(self, call: Call) -> None:
        """End one admitted call; where an interrupt has kept it from passing on the engine, that is done here."""
        self.pass_on(call)
        with self._mutex:
            self._calls.discard(call)

    def take(self, call: Call, *, closing: bool = False) -> None:
        """Give `call` the engine; where it is taken, queue up and `call.wait`, which may raise.

        Whatever happens, `pass_on` follows.
        """
        with self._mutex:
            if not closing:
                self._refuse_if_closed()
            if self._owner is None:
                self._owner = call
                return
            granted = threading.Lock()
            granted.acquire()
            self._queue.append((call, granted))
        call.wait(lambda seconds: granted.acquire(timeout=seconds))
        if not closing:
            self._refuse_if_closed()

    def pass_on(self, call: Call) -> None:
        """Hand the engine, if `call` has it, to whoever has waited longest; let `call` wait no more."""
        with self._mutex:
            if self._owner is not call:
                self._queue = deque(waiting for waiting in self._queue if waiting[0] is not call)
            elif self._queue:
                self._owner, granted = self._queue.popleft()
                granted.release()
            else:
                self._owner = None

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise EncoderClosedError("this encoder was closed: load the bundle again")


class Call:
    """One admitted call: its deadline, its cancel signal, its turns and its batches, all done when it is left."""

    def __init__(
        self, scheduler: Scheduler, *, timeout_s: float | None, cancel: CancelSignal | None, max_pending: int
    ) -> None:
        self._scheduler = scheduler
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._cancel = cancel
        self._error: BaseException | None = None
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
    def turn(self) -> Iterator[None]:
        """Hold the engine for one batch; raises as `check` does, and EncoderClosedError."""
        self.check()
        try:
            self._scheduler.take(self)
            with NATIVE:
                yield
        finally:
            self._scheduler.pass_on(self)

    def check(self) -> None:
        """Raise EncodeCancelledError, EncodeTimeoutError or what `fail` was given, where the call should end.

        EncoderClosedError in a fork.
        """
        require_process(self._scheduler.process)
        if self._error is not None:
            raise self._error
        if self._cancel is not None and self._cancel.is_set():
            raise EncodeCancelledError("the call was cancelled; the encoder stays usable")
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise EncodeTimeoutError(
                f"the call did not finish within {self._timeout_s} s; the encoder stays usable: "
                "give it more time or fewer sentences"
            )

    def is_lost(self) -> bool:
        """Whether the threads that it would wait for are not there: in a fork, and where the interpreter has ended."""
        return os.getpid() != self._scheduler.process or sys.is_finalizing()

    def fail(self, error: BaseException | None) -> None:
        """End the call with `error`, from any thread, at its next check; None does nothing."""
        self._error = self._error or error

    def wait(self, is_ready: IsReady) -> None:
        """Block until `is_ready` says so; raises as `check` does."""
        while True:
            step_s = FOREVER_S if self._cancel is None else POLL_S
            if self._deadline is not None:
                step_s = max(0.0, min(step_s, self._deadline - time.monotonic()))
            if is_ready(step_s):
                return
            self.check()
