"""Who has the engine: one at a time, and those who wait in the order in which they came."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from mexma_runtime.errors import EncoderClosedError

POLL_S = 1.0
"""How often whoever waits looks whether an interrupt has kept others from telling."""
IsReady: TypeAlias = Callable[[float], bool]
"""Waits for up to so many seconds and says whether what was waited for is there."""


class Turns:
    """Hands the engine on; where an interrupt keeps its holder from passing it on, the holder does so once more."""

    def __init__(self) -> None:
        # Whoever holds it may have to end a call that was forgotten.
        self._mutex = threading.RLock()
        self._owner: object | None = None
        self._is_closed = False
        self._queue: deque[tuple[object, threading.Lock]] = deque()

    def take_free(self, holder: object) -> bool:
        """Give `holder` the engine if nobody has it."""
        if self._owner is not None:
            return False
        with self._mutex:
            self.refuse_if_closed()
            if self._owner is None:
                self._owner = holder
            return self._owner is holder

    def take(self, holder: object, wait: Callable[[IsReady], None], *, closing: bool = False) -> None:
        """Give `holder` the engine; where another has it, queue up and `wait`, which may raise.

        Whatever happens, `pass_on` follows.
        """
        with self._mutex:
            if not closing:
                self.refuse_if_closed()
            if self._owner is None or self._owner is holder:
                self._owner = holder
                return
            granted = threading.Lock()
            granted.acquire()
            self._queue.append((holder, granted))
        # An interrupt may come between the two statements that hand it over.
        wait(lambda seconds: granted.acquire(timeout=min(seconds, POLL_S)) or self._owner is holder)
        if not closing:
            self.refuse_if_closed()

    def pass_on(self, holder: object) -> None:
        """Hand the engine, if `holder` has it, to whoever has waited longest; let `holder` wait no more."""
        if self._owner is not holder and not self._queue:
            return
        with self._mutex:
            self._queue = deque(waiting for waiting in self._queue if waiting[0] is not holder)
            if self._owner is not holder:
                return
            if self._queue:
                # Its place in the queue is kept until it passes the engine on in its turn.
                self._owner, granted = self._queue[0]
                granted.release()
            else:
                self._owner = None

    def close(self) -> None:
        """Refuse all turns from now on, but to who takes one closing."""
        with self._mutex:
            self._is_closed = True

    def refuse_if_closed(self) -> None:
        """EncoderClosedError after `close`."""
        if self._is_closed:
            raise EncoderClosedError("this encoder was closed: load the bundle again")
