"""The backend over a device: one thread of its own runs the engine; batches that do not fit are parted."""

from __future__ import annotations

import functools
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from mexma_runtime.backends.base import BackendInfo, Finish, OnRows
from mexma_runtime.backends.gpu.engine import DeviceEngine, PendingBatch, Place
from mexma_runtime.backends.gpu.measuring import measure_buckets, measure_kernels
from mexma_runtime.batching import Grouping
from mexma_runtime.bundle.tuning import AttentionSample, Sample
from mexma_runtime.device_vectors import DeviceRows, DeviceVectors
from mexma_runtime.errors import DeviceMemoryError, EncoderClosedError, UsageError
from mexma_runtime.process import NATIVE, Begun
from mexma_runtime.types import Ragged, Vectors

Result = TypeVar("Result")


class DeviceBackend:
    """Runs one engine on one device; `start` queues a batch and returns at once."""

    def __init__(
        self, worker: Worker, engine: DeviceEngine, info: BackendInfo, make_value: Callable[[Any], Any]
    ) -> None:
        """`make_value` allocates float32 of the shape it is given on the device, for DeviceVectors."""
        self._worker, self._engine, self._make_value, self.info = worker, engine, make_value, info
        self._adding = threading.Lock()
        self._waited_s = self._fetched_s = 0.0

    @property
    def copy_s(self) -> float:
        """Laying out, queueing and fetching; part of it beside the device's work."""
        return self._engine.copy_s + self._fetched_s

    @property
    def compute_s(self) -> float:
        """In the library, and waiting for the device."""
        return self._engine.compute_s + self._waited_s

    def start(
        self, batch: Ragged, out: Vectors | DeviceRows, *, normalize: bool, on_rows: OnRows | None = None
    ) -> Finish:
        """Queue `batch`; small ones at once, since changing to the worker's thread takes longer than laying one out."""
        place = self._engine.place(batch)
        if place.has_graph:
            return functools.partial(self._finish, self._launch(batch, out, place, normalize))
        future = self._worker.submit(self._launch, batch, out, place, normalize)
        return lambda: self._finish(future.result())

    def device_vectors(self, shape: tuple[int, ...]) -> DeviceVectors:
        """Room on the device for vectors of `shape`: `(n, dim)` or `(dim,)`."""
        if self.info.policy.grouping is not Grouping.IN_ORDER:
            raise UsageError("output='device' needs a packed engine, whose vectors are in order: load dialect='packed'")
        value = self._worker.run(self._allocate, shape)
        return DeviceVectors(value, self.info.device)

    def measure(self, *, dim: int, progress: Callable[[int, int], None] | None = None) -> list[Sample]:
        """How long each bucket takes, and running without: see `measure_buckets`."""
        return self._worker.run(functools.partial(measure_buckets, self._engine, dim=dim, progress=progress))

    def measure_attention(
        self, *, dim: int, progress: Callable[[int, int], None] | None = None
    ) -> list[AttentionSample]:
        """How long either attention kernel takes: see `measure_kernels`."""
        return self._worker.run(functools.partial(measure_kernels, self._engine, dim=dim, progress=progress))

    def close(self) -> None:
        """Wait for what is under way, and release the engine."""
        self._worker.close(self._engine.close)

    def _allocate(self, shape: tuple[int, ...]) -> Any:
        self._engine.finish()
        try:
            return self._make_value(shape)
        except Exception as error:
            raise DeviceMemoryError(
                f"{self.info.device}: no room for vectors of {shape}: embed fewer texts a call, or take them on the "
                f"host ({error})"
            ) from error

    def _launch(self, batch: Ragged, out: Vectors | DeviceRows, place: Place, normalize: bool) -> list[PendingBatch]:
        try:
            return [self._engine.launch(batch, out, place, normalize=normalize)]
        except DeviceMemoryError as error:
            if len(batch) == 1:
                raise DeviceMemoryError(
                    f"{self.info.device}: no room for one sentence of {batch.ids.size} tokens ({error}). Raise the "
                    "encoder's memory_limit where it has one, load it with fewer graphs, or make room on the device; "
                    "it stays usable"
                ) from error
        half = len(batch) // 2
        queued = []
        for start, end in ((0, half), (half, len(batch))):
            part = batch.part(start, end)
            queued += self._launch(part, out[start:end], self._engine.place(part), normalize)
        return queued

    def _finish(self, queued: list[PendingBatch]) -> None:
        with NATIVE:
            for pending in queued:
                pending.finish()
        with self._adding:
            self._waited_s += sum(pending.wait_s for pending in queued)
            self._fetched_s += sum(pending.copy_s for pending in queued)


class Worker:
    """The one thread that runs a device's session."""

    def __init__(self, name: str) -> None:
        self._works: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_work_off, args=(self._works,), name=f"mexma-{name}", daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, self._works.put, None)
        self._end.atexit = False

    def submit(self, work: Callable[..., Result], *arguments: Any) -> Begun[Result]:
        """Run `work` in the thread, after all that was submitted before."""
        if not self._end.alive:
            raise EncoderClosedError("this engine was closed: load the bundle again")
        begun = NATIVE.begin(functools.partial(work, *arguments))
        self._works.put(begun)
        return begun

    def run(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """The same, and wait for it."""
        return self.submit(work, *arguments).result()

    def close(self, last: Callable[[], None]) -> None:
        """Run `last` there and end the thread; calling it twice is fine."""
        if self._end.alive:
            self.submit(last)
            self._end()
            self._thread.join()


def _work_off(works: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    """Refers to no Worker, so that one that was forgotten ends its thread."""
    while run := works.get():
        run()
        del run  # and with it the caller's arrays
