"""What a backend needs of a device beside its engine library: memory on both sides, copies in order, and marks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Allocation(Protocol):
    """A piece of the device's memory, zeros at first."""

    pointer: int


class Event(Protocol):
    """A place in the device's queue."""

    def wait(self) -> None:
        """Return when all that was queued before it is done; called once."""


class Graph(Protocol):
    """Work that was captured, to be queued again and again by one call."""

    def launch(self) -> None:
        """Queue all of it."""


class Device(Protocol):
    """One device and one queue (stream) of work on it; whoever uses it sees to it that no two threads do at once."""

    kind: str
    """As onnxruntime names it: `cuda`."""
    index: int

    def active(self) -> AbstractContextManager[None]:
        """While it is open, the calling thread may queue; the thread that made the device always may."""

    def allocate(self, n_bytes: int) -> Allocation:
        """So many zeros; DeviceMemoryError where they do not fit."""

    def host_bytes(self, n_bytes: int) -> NDArray[np.uint8]:
        """Memory of the host that copies to and from the device run beside computation with (page-locked)."""

    def upload(self, source: NDArray[np.uint8], pointer: int) -> None:
        """Queue a copy of `source`, of `host_bytes`, to the device."""

    def download(self, pointer: int, target: NDArray[np.uint8]) -> None:
        """Queue a copy to `target`, of `host_bytes`, from the device."""

    def copy(self, source: int, target: int, n_bytes: int) -> None:
        """Queue a copy within the device."""

    def capture(self, work: Callable[[], None]) -> Graph:
        """What `work` queues: it is not run now, and whatever memory it names has to stay where it is."""

    def record_event(self) -> Event:
        """Record an event: it is over when all that was queued before is done."""

    def free_bytes(self) -> int:
        """Memory of the device that nobody has."""

    def close(self) -> None:
        """Release the queue; calling it twice is fine."""
