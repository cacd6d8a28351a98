"""What the process does to the libraries that compute: it ends, and it forks.

The end. Libraries compute without the interpreter's lock. When the interpreter has ended, it stops a daemon thread as
soon as that comes back for the lock, which C++ answers with "terminate called" and Rust with an abort. So
whatever runs in a library runs within `NATIVE`, and an atexit callback waits for what is under way. Then all threads
but daemons have ended, and so have the callbacks that were registered since this package was imported. Afterwards the
main thread, which runs the callbacks that are left, may still embed; a daemon thread that begins a batch is ended by
SystemExit, the one exception that ends a thread in silence.

A fork. The child has a copy of all memory and of no other thread. Where a library's threads were in the middle of
something, what they left crashes or hangs whoever uses the library there. So a fork waits for what is under way, and
nothing begins until it is done. An engine that the child has inherited can neither compute nor be destroyed: its
destructor would wait for threads that are not there. So it is kept for ever.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from mexma_runtime.errors import EncoderClosedError

Result = TypeVar("Result")
PF_FORKNOEXEC = 0x40
"""Linux's flag of a process that was forked and has executed no file."""
LONGEST_PAUSE_S = 60.0
"""How long a fork waits for what is under way: longer than a batch, or an engine's opening, takes."""


class NativeWork:
    """What is under way in libraries, by `with` or `begin`: the process ends, and forks, when there is none.

    Whatever a thread does while it is counted already belongs to that.
    """

    def __init__(self) -> None:
        self.is_fork = False
        """Whether this process was forked from another Python, whose libraries it has inherited."""
        self.setting_up = threading.Lock()
        """For a library that cannot be set up by two threads at once."""
        # Whoever holds it may have to destroy an engine, which is counted.
        self._changed = threading.Condition(threading.RLock())
        self._own = _Depth()
        self._n_under_way = self._n_pauses = 0
        self._is_ending = False

    def __enter__(self) -> None:
        """Wait for `resume` after `pause`. SystemExit, or EncoderClosedError, where it is too late to begin."""
        if sys.is_finalizing():
            raise EncoderClosedError("the interpreter has ended, and the engine with it: embed before, or in atexit")
        if not self._own.depth:
            with self._changed:
                self._changed.wait_for(lambda: not self._n_pauses)
                if self._is_ending and not _is_main_thread():
                    raise SystemExit
                self._n_under_way += 1
        self._own.depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own.depth -= 1
        if not self._own.depth:
            self._add(-1)

    def begin(self, work: Callable[[], Result]) -> tuple[Future[Result], Callable[[], None]]:
        """Count `work` as under way. What is returned second does it, in any thread, and has to be called."""
        future: Future[Result] = Future()

        def run() -> None:
            self._own.depth += 1
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - whoever waits for the result gets it
                future.set_exception(error)
            finally:
                self._own.depth -= 1
                self._add(-1)

        with self:
            self._add(1)
        return future, run

    def end(self) -> None:
        """Let no other thread begin anything, and wait for what is under way."""
        with self._changed:
            self._is_ending = True
            self._wait_for_others(is_counted=self._own.depth > 0)

    def pause(self) -> None:
        """Let no other thread begin anything until `resume`, and wait for what is under way; RuntimeWarning if long."""
        is_counted = self._own.depth > 0
        self._own.depth += 1  # it may have to destroy engines while it waits
        with self._changed:
            self._n_pauses += 1
            is_quiet = self._wait_for_others(is_counted=is_counted, timeout_s=LONGEST_PAUSE_S)
        if not is_quiet:
            warnings.warn(
                f"this process forks in the middle of a call that has not ended for {LONGEST_PAUSE_S:.0f} s: the child "
                "may crash in the library that computes",
                RuntimeWarning,
                stacklevel=2,
            )

    def resume(self) -> None:
        """End what `pause` began."""
        self._own.depth -= 1
        with self._changed:
            self._n_pauses -= 1
            self._changed.notify_all()

    def begin_again(self) -> None:
        """In a forked process: others may have held the locks, and what they had begun is not here."""
        depth = self._own.depth - 1
        self.__init__()  # type: ignore[misc]
        self.is_fork, self._own.depth, self._n_under_way = True, depth, int(depth > 0)

    def _wait_for_others(self, *, is_counted: bool, timeout_s: float | None = None) -> bool:
        """Whether only the caller, if it `is_counted`, is under way before the timeout."""
        return self._changed.wait_for(lambda: self._n_under_way <= is_counted, timeout_s)

    def _add(self, n: int) -> None:
        with self._changed:
            self._n_under_way += n
            self._changed.notify_all()


class _Depth(threading.local):
    """How many times the thread that asks is counted."""

    depth = 0


NATIVE = NativeWork()
"""That of this process."""
_kept: weakref.WeakSet[Any] = weakref.WeakSet()


def run_aside(work: Callable[[], Result], name: str) -> Future[Result]:
    """Begin `work` in a thread of that name; in the caller's where no other can be had.

    A pool would refuse it once the main thread has ended, though others go on; and from Python 3.12 on, no thread can
    be started then.
    """
    future, run = NATIVE.begin(work)
    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except RuntimeError:
        run()
    return future


def keep_in_forks(engine: object) -> None:
    """Never destroy `engine`, or what it refers to, in a process that is forked from this one."""
    _kept.add(engine)


def keep_for_ever(engine: object) -> None:
    """Never destroy `engine`, or what it refers to, in this process."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))


def require_process(process: int) -> None:
    """EncoderClosedError where this process is another one than that in which an encoder was loaded."""
    if os.getpid() != process:
        raise EncoderClosedError(
            f"this encoder was loaded in process {process} and does not work in its fork {os.getpid()}, "
            "which lacks the engine's threads: load the bundle there, or start processes with 'spawn'"
        )


def _was_forked() -> bool:
    """Whether this process was forked before this package was imported, and runs no program of its own; on Linux."""
    try:
        flags = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[6]
    except OSError:
        return False
    return bool(int(flags) & PF_FORKNOEXEC)


def _is_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


def _after_fork() -> None:
    NATIVE.begin_again()
    for engine in _kept:
        keep_for_ever(engine)


NATIVE.is_fork = _was_forked()
atexit.register(NATIVE.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=NATIVE.pause, after_in_parent=NATIVE.resume, after_in_child=_after_fork)
