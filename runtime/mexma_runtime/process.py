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

import _thread
import atexit
import ctypes
import math
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from mexma_runtime.errors import EncoderClosedError

Result = TypeVar("Result")
PF_FORKNOEXEC = 0x40
"""Linux's flag of a process that was forked and has executed no file."""
LONGEST_PAUSE_S = 60.0
"""How long a fork waits for what is under way: longer than a batch, or an engine's opening, takes."""
POLL_S = 0.1
"""How often whoever waits for others looks whether they are gone without a word."""


class Begun(Generic[Result]):
    """Work that is under way; calling it, in any thread, does it.

    A concurrent.futures.Future would keep others waiting for ever where an interrupt meets its condition's lock.
    """

    def __init__(self, native: NativeWork, work: Callable[[], Result]) -> None:
        self.thread: int | None = None
        """That which does it."""
        self._native, self._work = native, work
        self._result: Result
        self._error: BaseException | None = None
        self._is_done = False
        self._undone = threading.Lock()
        self._undone.acquire()

    def __call__(self) -> None:
        """Do it."""
        self._native.do(self)

    def work(self) -> None:
        """Keep what comes of it."""
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - whoever waits for the result gets it
            self._error = error
        self._is_done = True
        self._undone.release()

    def wait(self, seconds: float = -1) -> bool:
        """Whether it is done after so many seconds; -1: however long it takes."""
        if not self._is_done and self._undone.acquire(timeout=seconds):
            self._undone.release()
        return self._is_done

    def result(self) -> Result:
        """Wait for what comes of it: returned or raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._result


class NativeWork:
    """What is under way in libraries, by `with` or `begin`: the process ends, and forks, when there is none.

    Whatever a thread does while it is counted already belongs to that. Nothing here is added up: an interrupt between
    two statements leaves nothing behind that is waited for.
    """

    def __init__(self) -> None:
        self.is_fork = False
        """Whether this process was forked from another Python, whose libraries it has inherited."""
        self.setting_up = threading.Lock()
        """For a library that cannot be set up by two threads at once."""
        self.settling_s = 0.0
        """How long a library's threads may go on when nothing is under way any more."""
        # Whoever holds it may have to destroy an engine, which is counted.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._own = _Depth()
        self._threads: set[int] = set()
        self._begun: weakref.WeakSet[Begun[Any]] = weakref.WeakSet()
        self._forking: set[int] = set()
        self._is_ending = False

    def __enter__(self) -> None:
        """Wait while the process forks. SystemExit, or EncoderClosedError, where it is too late to begin."""
        if sys.is_finalizing():
            raise EncoderClosedError("the interpreter has ended, and the engine with it: embed before, or in atexit")
        if not self._own.depth:
            thread = threading.get_ident()
            with self._lock:
                self._changed.wait_for(lambda: self._forking <= {thread})
                if self._is_ending and not _is_main_thread():
                    raise SystemExit
                self._threads.add(thread)
        self._own.depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own.depth -= 1
        if not self._own.depth:
            with self._lock:
                self._threads.discard(threading.get_ident())
                self._changed.notify_all()

    def begin(self, work: Callable[[], Result]) -> Begun[Result]:
        """Count `work` as under way, until what is returned was called, or forgotten."""
        begun = Begun(self, work)
        with self:
            self._begun.add(begun)
        return begun

    def do(self, begun: Begun[Any]) -> None:
        """Do what was begun, in this thread."""
        self._own.depth += 1
        begun.thread = threading.get_ident()
        try:
            begun.work()
        finally:
            self._own.depth -= 1
            with self._lock:
                self._begun.discard(begun)
                self._changed.notify_all()

    @property
    def is_ending(self) -> bool:
        """Whether no thread but the main one may begin anything."""
        return self._is_ending

    def end(self) -> None:
        """Let no other thread begin anything, and wait for what is under way."""
        with self._lock:
            self._is_ending = True
            self._wait_for_others()

    def pause(self) -> None:
        """Let no other thread begin anything until `resume`, and wait for what is under way; RuntimeWarning if long."""
        with self._lock:
            self._forking.add(threading.get_ident())
            is_quiet = self._wait_for_others(LONGEST_PAUSE_S)
        time.sleep(self.settling_s)
        if not is_quiet:
            warnings.warn(
                f"this process forks in the middle of a call that has not ended for {LONGEST_PAUSE_S:.0f} s: the child "
                "may crash in the library that computes",
                RuntimeWarning,
                stacklevel=2,
            )

    def resume(self) -> None:
        """End what `pause` began."""
        with self._lock:
            self._forking.discard(threading.get_ident())
            self._changed.notify_all()

    def begin_again(self) -> None:
        """In a forked process: others may have held the locks, and what they had begun is not here."""
        own, settling_s = self._own, self.settling_s
        self.__init__()  # type: ignore[misc]
        self.is_fork, self._own, self.settling_s = True, own, settling_s
        if own.depth:
            self._threads.add(threading.get_ident())

    def _wait_for_others(self, timeout_s: float = math.inf) -> bool:
        """Whether nothing of other threads is under way before the timeout."""
        deadline = time.monotonic() + timeout_s
        thread = threading.get_ident()
        while self._threads - self._forking - {thread} or any(begun.thread != thread for begun in self._begun):
            if time.monotonic() >= deadline:
                return False
            self._changed.wait(POLL_S)  # what was begun and dropped notifies nobody
        return True


class _Depth(threading.local):
    """How many times the thread that asks is counted."""

    depth = 0


NATIVE = NativeWork()
"""That of this process."""
_kept: weakref.WeakSet[Any] = weakref.WeakSet()


def run_aside(work: Callable[[], Result]) -> Begun[Result]:
    """Begin `work` in another thread; in the caller's where no other can be had.

    A pool would refuse it once the main thread has ended, though others go on; and from Python 3.12 on, no thread can
    be started then. threading.Thread waits for its start in a way that an interrupt can make last for ever.
    """
    begun = NATIVE.begin(work)
    try:
        _thread.start_new_thread(begun, ())
    except RuntimeError:
        begun()
    return begun


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
