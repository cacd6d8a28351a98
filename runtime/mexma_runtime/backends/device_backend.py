"""The backend over a device: one thread of its own runs the engine; batches that do not fit are parted."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from mexma_runtime.backends.base import BackendInfo, Finish
from mexma_runtime.backends.device_engine import DeviceEngine, Flight
from mexma_runtime.backends.layouts import Shape
from mexma_runtime.batching import Grouping
from mexma_runtime.device_vectors import DeviceRows, DeviceVectors
from mexma_runtime.errors import DeviceMemoryError, EngineUnavailableError, UsageError
from mexma_runtime.types import Precision, Ragged, Vectors

Result = TypeVar("Result")

LARGEST_DIFFERENCE = {Precision.FP32: 1e-3, Precision.FP16: 3e-2}
"""Most that a vector may differ, as a share of its length, between the ways to run it that are checked at loading.

What is looked for are wrong kernels and broken graphs, whose vectors have nothing in common; rounding in another
order stays far below.
"""
PROBE_LENGTHS = (7, 3, 12)


class DeviceBackend:
    """Runs one engine on one device; `start` queues a batch and returns at once."""

    def __init__(
        self, worker: Worker, engine: DeviceEngine, info: BackendInfo, make_value: Callable[[Any], Any]
    ) -> None:
        """`make_value` allocates an OrtValue, float32 of the shape it is given, on the device."""
        self._worker, self._engine, self._info, self._make_value = worker, engine, info, make_value
        self._adding = threading.Lock()
        self._waited_s = self._fetched_s = 0.0

    @property
    def info(self) -> BackendInfo:
        """What was chosen; `n_graphs` and `graph_bytes` as of now."""
        engine = self._engine
        return dataclasses.replace(self._info, n_graphs=len(engine.buckets), graph_bytes=engine.graph_bytes)

    @property
    def copy_s(self) -> float:
        """Laying out, queueing and fetching; part of it beside the device's work."""
        return self._engine.copy_s + self._fetched_s

    @property
    def compute_s(self) -> float:
        """In onnxruntime, and waiting for the device."""
        return self._engine.compute_s + self._waited_s

    def start(self, batch: Ragged, out: Vectors | DeviceRows, *, normalize: bool) -> Finish:
        """Queue `batch`."""
        return functools.partial(self._finish, self._worker.submit(self._launch, batch, out, normalize))

    def device_vectors(self, shape: tuple[int, ...]) -> DeviceVectors:
        """Room on the device for vectors of `shape`: `(n, dim)` or `(dim,)`."""
        if self._info.policy.grouping is not Grouping.IN_ORDER:
            raise UsageError("output='device' needs a packed engine, whose vectors are in order: load dialect='packed'")
        value = self._worker.run(self._allocate, shape)
        return DeviceVectors(value, self._info.device)

    def close(self) -> None:
        """Wait for what is under way, and release the engine."""
        self._worker.close(self._engine.close)

    def _allocate(self, shape: tuple[int, ...]) -> Any:
        self._engine.finish()
        try:
            return self._make_value(shape)
        except Exception as error:
            raise DeviceMemoryError(
                f"{self._info.device}: no room for vectors of {shape}: embed fewer texts a call, or take them on the "
                f"host ({error})"
            ) from error

    def _launch(self, batch: Ragged, out: Vectors | DeviceRows, normalize: bool) -> list[Flight]:
        try:
            return [self._engine.launch(batch, out, normalize=normalize)]
        except DeviceMemoryError as error:
            if len(batch) == 1:
                raise DeviceMemoryError(
                    f"{self._info.device}: no room for one sentence of {batch.ids.size} tokens ({error}). Raise the "
                    "encoder's memory_limit, load it with fewer graphs, or make room on the device; it stays usable"
                ) from error
        half = len(batch) // 2
        parts = ((0, half), (half, len(batch)))
        return [
            flight for start, end in parts for flight in self._launch(batch.part(start, end), out[start:end], normalize)
        ]

    def _finish(self, future: Future[list[Flight]]) -> None:
        flights = future.result()
        for flight in flights:
            flight.finish()
        with self._adding:
            self._waited_s += sum(flight.wait_s for flight in flights)
            self._fetched_s += sum(flight.copy_s for flight in flights)


class Worker:
    """The one thread that touches a device's session: onnxruntime keeps captured graphs by thread."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"mexma-{name}")
        self._is_closed = False

    def submit(self, work: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Run `work` there."""
        return self._pool.submit(work, *arguments)

    def run(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """The same, and wait for it."""
        return self.submit(work, *arguments).result()

    def close(self, last: Callable[[], None]) -> None:
        """Run `last` there and end the thread; calling it twice is fine."""
        if not self._is_closed:
            self._is_closed = True
            self.submit(last)
            self._pool.shutdown()


def probe(vocab_size: int, max_tokens: int) -> Ragged:
    """Sentences of different lengths to compare ways to run by, ids spread over the vocabulary."""
    lengths = [min(length, max_tokens) for length in PROBE_LENGTHS]
    ids = np.linspace(vocab_size // 3, vocab_size - 1, sum(lengths)).astype(np.int32)
    return Ragged(ids=ids, offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def check_company(engine: DeviceEngine, sentences: Ragged, *, dim: int, precision: Precision) -> Vectors:
    """Vectors of `sentences`, each run alone; EngineUnavailableError where running them together gives others."""
    alone = np.empty((len(sentences), dim), dtype=np.float32)
    for row in range(len(sentences)):
        one = sentences.part(row, row + 1)
        engine.launch(one, alone[row : row + 1], normalize=False, shape=engine.capacity).finish()
    check_shape(engine, engine.capacity, sentences, alone, precision=precision)
    return alone


def check_shape(
    engine: DeviceEngine, shape: Shape, sentences: Ragged, expected: Vectors, *, precision: Precision
) -> None:
    """EngineUnavailableError unless the sentences, run together in `shape`, have the `expected` vectors."""
    found = np.empty_like(expected)
    engine.launch(sentences, found, normalize=False, shape=shape).finish()
    differences = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    if not np.all(differences <= LARGEST_DIFFERENCE[precision]):
        raise EngineUnavailableError(
            f"this device computes wrong vectors: sentences run together, in room for {shape.n_tokens} tokens, differ "
            f"by {differences.max():.2g} of their length from the same sentences run alone, and at most "
            f"{LARGEST_DIFFERENCE[precision]:g} is expected. Other dialects of the bundle use other kernels: load it "
            "with dialect='fused', and report this with the output of `mexma doctor`"
        )


def add_buckets(
    engine: DeviceEngine,
    shapes: Iterable[Shape],
    sentences: Ragged,
    expected: Vectors,
    *,
    precision: Precision,
    at_load: bool,
    most_bytes: int,
) -> None:
    """Give `engine` a bucket for each shape, the smallest first, until they have taken `most_bytes` of the device.

    at_load: capture each one's graph now, and check what it gives.
    """
    first = functools.cache(lambda n: sentences.part(0, n))
    for shape in shapes:
        if engine.graph_bytes > most_bytes:
            return
        try:
            engine.add_bucket(shape)
            if at_load:
                n_rows = next(n for n in range(len(sentences), -1, -1) if n == 0 or engine.fits(first(n), shape))
                if n_rows == 0:
                    continue
                some = first(n_rows)
                check_shape(
                    engine, shape, some, expected[:n_rows], precision=precision
                )  # captures, and checks that run
                check_shape(engine, shape, some, expected[:n_rows], precision=precision)  # replays
        except DeviceMemoryError:
            engine.remove_bucket(shape)
            return
