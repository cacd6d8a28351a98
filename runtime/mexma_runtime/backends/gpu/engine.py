"""One engine on one device: inputs laid out in page-locked memory, queued, run by IO binding, vectors fetched.

Nothing here knows CUDA: the same class runs on onnxruntime's CPU provider, and is tested there.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mexma_runtime.backends.gpu.buckets import size
from mexma_runtime.backends.gpu.device import Device, Event, Graph
from mexma_runtime.backends.gpu.layouts import ArraySpec, Layout, Shape
from mexma_runtime.backends.gpu.session import Session
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.device_vectors import DeviceRows
from mexma_runtime.errors import DeviceError, DeviceMemoryError, MexmaError
from mexma_runtime.types import Ragged, Vectors

N_STAGING_BUFFERS = 2
"""Batches that are under way at once: one is computed while the next is laid out."""
ALIGNMENT = 256
"""Bytes; as cudaMalloc aligns."""


class PendingBatch:
    """A batch that was queued. Whoever needs it done first, the caller or the next user of its memory, finishes it."""

    def __init__(self, staging: _StagingBuffer, event: Event, out: Vectors | None) -> None:
        self._staging, self._event, self._out = staging, event, out
        self._lock = threading.Lock()
        self._is_done = False
        self.wait_s = self.copy_s = 0.0

    def finish(self) -> None:
        """Return when the vectors are where they belong."""
        with self._lock:
            if self._is_done:
                return
            start_s = time.perf_counter()
            self._event.wait()
            waited_s = time.perf_counter()
            if self._out is not None:
                self._out[...] = self._staging.host_vectors[: len(self._out)]
            self._is_done, self._out = True, None
            self.wait_s, self.copy_s = waited_s - start_s, time.perf_counter() - waited_s


class DeviceEngine:
    """An open session on a device.

    Its methods are called by one thread: a library makes handles and workspaces for each thread that runs a session.
    But batches that have a graph may be launched, and all pending batches finished, by any.
    """

    def __init__(
        self,
        session: Session,
        device: Device,
        layout: Layout,
        entry: EngineEntry,
        *,
        dim: int,
        capacity: Shape,
    ) -> None:
        """`capacity`: the largest batch; larger ones are refused by `launch`. Memory is taken for it here."""
        self._session, self._device, self._layout, self._entry, self._dim = session, device, layout, entry, dim
        self.capacity = capacity
        self._zeros = device.allocate(max(map(_bytes_of, layout.constant_specs(capacity).values()), default=0))
        self._staging = cycle(
            [_StagingBuffer(session, device, layout, capacity, dim, is_fixed=False) for _ in range(N_STAGING_BUFFERS)]
        )
        self._buckets: dict[Shape, _Bucket] = {}
        self._queueing = threading.Lock()
        self.graph_bytes = 0
        """Device memory that buckets have taken: their own, their graphs' and what the arena grew by."""
        self.copy_s = self.compute_s = 0.0

    @property
    def session(self) -> Session:
        """What runs its batches."""
        return self._session

    @property
    def buckets(self) -> list[Shape]:
        """Shapes that are run as captured graphs, the smallest first."""
        return list(self._buckets)

    def add_bucket(self, shape: Shape) -> None:
        """From now on, run what fits in `shape` there, in a graph that the first run captures."""
        assert self.capacity.n_sentences >= shape.n_sentences
        with self._counting_memory():
            staging = _StagingBuffer(self._session, self._device, self._layout, shape, self._dim, is_fixed=True)
            laid = staging.laid_out(shape)
            self._bind(staging, laid, staging.vectors.pointer)
        buckets = {**self._buckets, shape: _Bucket(laid, staging)}
        self._buckets = dict(sorted(buckets.items(), key=lambda item: size(item[0])))

    def remove_bucket(self, shape: Shape) -> None:
        """Run what fits in `shape` elsewhere again."""
        if bucket := self._buckets.pop(shape, None):
            bucket.staging.finish()

    def fits(self, batch: Ragged, shape: Shape) -> bool:
        """Whether there is room for `batch` in `shape`, a bucket's or `capacity`, and the library runs it there."""
        need = self._layout.shape_of(batch)
        return shape.holds(need) and (shape != self.capacity or self.can_run(need))

    def can_run(self, shape: Shape) -> bool:
        """Whether the library can run `shape`."""
        return self._session.holds(shape.n_sentences, shape.longest)

    def place(self, batch: Ragged, shape: Shape | None = None) -> Place:
        """Where `batch` is run: in the smallest bucket, or in that of `shape`; `capacity`: in none."""
        need = self._layout.shape_of(batch)
        if shape is not None:
            return Place(need, self._buckets.get(shape))
        return Place(need, next((bucket for there, bucket in self._buckets.items() if there.is_for(need)), None))

    def launch(self, batch: Ragged, out: Vectors | DeviceRows, place: Place, *, normalize: bool) -> PendingBatch:
        """Queue `batch` at its `place`, its vectors to go to `out`: float32 `(n, dim)` of the host, or DeviceRows.

        `normalize` is for layouts that do. Raises DeviceMemoryError where the device's memory, or the capacity, is too
        small for it.
        """
        start_s = time.perf_counter()
        assert self._layout.normalizes or not normalize
        rows = out if isinstance(out, DeviceRows) else None
        need, bucket = place.need, place.bucket
        if bucket is None and not self.capacity.holds(need):
            raise DeviceMemoryError(f"a batch of {_words(need)}, and there is room for {_words(self.capacity)}")
        if bucket is None and not self.can_run(need):
            raise DeviceMemoryError(f"a batch of {_words(need)}, which no profile of the plan holds")
        with self._queueing, self._device.active():
            staging = bucket.staging if bucket else next(self._staging)
            staging.finish()
            laid = bucket.laid if bucket else staging.laid_out(need)
            self._layout.fill(batch, laid.arrays, normalize=normalize)
            if bucket is None:
                self._bind(staging, laid, rows.pointer if rows else staging.vectors.pointer)
            elif bucket.graph is None:
                self._capture(bucket)
            laid_s = time.perf_counter()
            if bucket and bucket.graph:
                bucket.graph.launch()
            else:
                self._run(staging, laid)
            ran_s = time.perf_counter()
            n_bytes = len(batch) * self._dim * staging.host_vectors.itemsize
            if rows is None:
                self._device.download(staging.vectors.pointer, staging.vector_bytes[:n_bytes])
            elif bucket:
                self._device.copy(staging.vectors.pointer, rows.pointer, n_bytes)
            staging.pending = pending = PendingBatch(
                staging,
                self._device.record_event(),
                out if isinstance(out, np.ndarray) else None,
            )
            self.compute_s += ran_s - laid_s
            self.copy_s += time.perf_counter() - ran_s + laid_s - start_s
            return pending

    def run_largest(self) -> None:
        """Run a batch that needs all of the capacity: afterwards the library has all the memory that any needs.

        One that cannot run it has taken its memory when it was opened.
        """
        shape = self._layout.fullest(self.capacity)
        if not self.can_run(shape):
            return
        left = shape.n_tokens - shape.longest
        n_others = min(shape.n_sentences - 1, left)
        others = [left // n_others + (row < left % n_others) for row in range(n_others)]
        lengths = [shape.longest, *others]
        batch = Ragged.from_lengths(np.zeros(sum(lengths), dtype=np.int32), lengths)
        vectors = np.empty((len(batch), self._dim), dtype=np.float32)
        self.launch(batch, vectors, self.place(batch, self.capacity), normalize=False).finish()

    def finish(self) -> None:
        """Return when nothing is under way."""
        with self._queueing:
            for _ in range(N_STAGING_BUFFERS):
                next(self._staging).finish()
            for bucket in self._buckets.values():
                bucket.staging.finish()

    def close(self) -> None:
        """Release session and memory."""
        self.finish()
        self._buckets.clear()
        self._staging = cycle(())
        del self._session
        self._device.close()

    def _bind(self, staging: _StagingBuffer, laid: _LaidOut, vectors: int) -> None:
        binding = staging.binding
        for name, array in laid.arrays.items():
            binding.bind_input(name, array.dtype.type, array.shape, staging.inputs.pointer + laid.offsets[name])
        for name, spec in self._layout.constant_specs(laid.shape).items():
            binding.bind_input(name, spec.dtype, spec.shape, self._zeros.pointer)
        binding.bind_output(self._entry.output, np.float32, (laid.shape.n_sentences, self._dim), vectors)

    def _run(self, staging: _StagingBuffer, laid: _LaidOut) -> None:
        self._device.upload(staging.host[: laid.n_bytes], staging.inputs.pointer)
        try:
            self._session.run(staging.binding)
        except Exception as error:
            with suppress(MexmaError):
                self._device.record_event().wait()  # for the copy, whose memory may be filled or freed next
            what = f"{self._entry.file}: {self._session.library} failed on a batch of {_words(laid.shape)}: {error}"
            raise (DeviceMemoryError if is_out_of_memory(error) else MexmaError)(what) from error

    def _capture(self, bucket: _Bucket) -> None:
        """Capture copy and run; run them once before, for what kernels load or take the first time."""
        with self._counting_memory():
            self._run(bucket.staging, bucket.laid)
            self._device.record_event().wait()
            if self._session.captures:
                bucket.graph = _CapturedByLibrary(lambda: self._run(bucket.staging, bucket.laid))
                return
            try:
                bucket.graph = self._device.capture(lambda: self._run(bucket.staging, bucket.laid))
            except DeviceMemoryError:
                raise
            except MexmaError as error:
                raise DeviceError(
                    f"{self._entry.file}: no graph could be captured for {_words(bucket.laid.shape)} ({error}): load "
                    "it with graphs='never', and report this with the output of `mexma doctor`"
                ) from error

    @contextmanager
    def _counting_memory(self) -> Iterator[None]:
        free_bytes = self._device.free_bytes()
        yield
        self.graph_bytes += free_bytes - self._device.free_bytes()


OUT_OF_MEMORY = ("out of memory", "failed to allocate memory", "smaller than requested bytes", "cuda failure 2:")
"""Words of CUDA's, of onnxruntime's arena, and of the arena at its limit."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library says that memory of the device ran out."""
    text = str(error).lower()
    return any(words in text for words in OUT_OF_MEMORY)


@dataclass(frozen=True, kw_only=True, eq=False)
class _LaidOut:
    """The inputs of one shape in the host's memory."""

    shape: Shape
    arrays: dict[str, NDArray[Any]]
    offsets: dict[str, int]
    """Bytes from the beginning."""
    n_bytes: int
    """From the first input's beginning to the last one's end."""


class _StagingBuffer:
    """Memory for one batch under way, on both sides: inputs one after another, so that one copy takes them over."""

    def __init__(
        self, session: Session, device: Device, layout: Layout, capacity: Shape, dim: int, *, is_fixed: bool
    ) -> None:
        self._layout, self.binding = layout, session.binding(is_fixed=is_fixed)
        n_bytes = sum(map(_aligned_bytes_of, layout.specs(layout.widest(capacity)).values()))
        self.host, self.inputs = device.host_bytes(n_bytes), device.allocate(n_bytes)
        self.vector_bytes = device.host_bytes(capacity.n_sentences * dim * 4)
        self.host_vectors = self.vector_bytes.view(np.float32).reshape(capacity.n_sentences, dim)
        self.vectors = device.allocate(self.vector_bytes.nbytes)
        self.pending: PendingBatch | None = None

    def laid_out(self, shape: Shape) -> _LaidOut:
        """The inputs of `shape`, as views of this memory."""
        arrays: dict[str, NDArray[Any]] = {}
        offsets, end = {}, 0
        for name, spec in self._layout.specs(shape).items():
            arrays[name] = self.host[end : end + _bytes_of(spec)].view(spec.dtype).reshape(spec.shape)
            offsets[name] = end
            end += _aligned_bytes_of(spec)
        return _LaidOut(shape=shape, arrays=arrays, offsets=offsets, n_bytes=end)

    def finish(self) -> None:
        """Wait for the batch that is under way in this memory."""
        if self.pending:
            self.pending.finish()
            self.pending = None


@dataclass(frozen=True, eq=False)
class _CapturedByLibrary:
    """A graph that the library captures, and replays, by itself."""

    run: Callable[[], None]

    def launch(self) -> None:
        """Queue the copy and a run."""
        self.run()


@dataclass(eq=False)
class _Bucket:
    """A shape with memory of its own, bound once."""

    laid: _LaidOut
    staging: _StagingBuffer
    graph: Graph | None = None


@dataclass(frozen=True, eq=False)
class Place:
    """Where a batch is run."""

    need: Shape
    """The least room that holds the batch."""
    bucket: _Bucket | None
    """None: in no bucket, without a graph."""

    @property
    def has_graph(self) -> bool:
        """Whether launching there replays a graph, which any thread may do."""
        return self.bucket is not None and self.bucket.graph is not None


def _bytes_of(spec: ArraySpec) -> int:
    return int(np.dtype(spec.dtype).itemsize) * math.prod(spec.shape)


def _aligned_bytes_of(spec: ArraySpec) -> int:
    return -(-_bytes_of(spec) // ALIGNMENT) * ALIGNMENT


def _words(shape: Shape) -> str:
    return f"{shape.n_sentences} sentences, {shape.n_tokens} tokens"
