"""One engine on one device: inputs laid out in page-locked memory, queued, run by IO binding, vectors fetched.

Nothing here knows CUDA: the same class runs on onnxruntime's CPU provider, and is tested there.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from itertools import count, cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mexma_runtime.backends.device import Device, Mark
from mexma_runtime.backends.lattice import size
from mexma_runtime.backends.layouts import ArraySpec, Layout, Shape
from mexma_runtime.backends.onnxruntime_library import SILENT
from mexma_runtime.device_vectors import DeviceRows
from mexma_runtime.errors import DeviceMemoryError, MexmaError, UsageError
from mexma_runtime.manifest import EngineEntry
from mexma_runtime.types import Ragged, Vectors
from mexma_runtime.vectors import normalize_rows

N_ROOMS = 2
"""Batches that are under way at once: one is computed while the next is laid out."""
ALIGNMENT = 256
"""Bytes; as cudaMalloc aligns."""
N_WARMUPS = 2
"""Runs of a bucket without a graph before its first run with one: onnxruntime 1.31 captures that one already, and what
it loads or allocates meanwhile makes the capture fail."""
RUNS_UNTIL_CAPTURED = 4
"""After so many runs of a bucket its graph has been captured, whatever the release of onnxruntime."""
NO_GRAPH = -1
"""gpu_graph_id of runs that are neither captured nor replayed."""


class Flight:
    """A batch that was queued. Whoever needs it done first, the caller or the next user of its memory, finishes it."""

    def __init__(self, room: _Room, mark: Mark, target: Vectors | None, *, normalize: bool) -> None:
        self._room, self._mark, self._target, self._normalize = room, mark, target, normalize
        self._lock = threading.Lock()
        self._is_done = False
        self.wait_s = self.copy_s = 0.0

    def finish(self) -> None:
        """Return when the vectors are where they belong."""
        with self._lock:
            if self._is_done:
                return
            start_s = time.perf_counter()
            self._mark.wait()
            waited_s = time.perf_counter()
            if self._target is not None:
                self._target[...] = self._room.host_vectors[: len(self._target)]
                if self._normalize:
                    normalize_rows(self._target)
            self._is_done, self._target = True, None
            self.wait_s, self.copy_s = waited_s - start_s, time.perf_counter() - waited_s


class DeviceEngine:
    """An open session on a device. Its methods are called by one thread; flights may be finished by any."""

    def __init__(
        self,
        session: Any,
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
        self._rooms = cycle([_Room(session, device, layout, capacity, dim) for _ in range(N_ROOMS)])
        self._direct = _run_options(NO_GRAPH)
        self._buckets: dict[Shape, _Bucket] = {}
        self._graph_ids = count(NO_GRAPH + 2)
        self.graph_bytes = 0
        """Device memory that buckets have taken: their own, their graphs' and what the arena grew by."""
        self.copy_s = self.compute_s = 0.0

    @property
    def buckets(self) -> list[Shape]:
        """Shapes that are run as captured graphs."""
        return list(self._buckets)

    def add_bucket(self, shape: Shape) -> None:
        """From now on, run what fits in `shape`, in a graph that is captured by the first runs there."""
        assert self.capacity.n_sentences >= shape.n_sentences
        free_bytes = self._device.free_bytes()
        room = _Room(self._session, self._device, self._layout, shape, self._dim)
        laid = room.laid_out(shape)
        self._bind(room, laid, room.vectors.pointer)
        bucket = _Bucket(laid, room, _run_options(next(self._graph_ids)))
        self._buckets = dict(sorted({**self._buckets, shape: bucket}.items(), key=lambda item: size(item[0])))
        self.graph_bytes += free_bytes - self._device.free_bytes()

    def remove_bucket(self, shape: Shape) -> None:
        """The contrary."""
        if bucket := self._buckets.pop(shape, None):
            bucket.room.finish()

    def fits(self, batch: Ragged, shape: Shape) -> bool:
        """Whether there is room for `batch` in `shape`."""
        return shape.holds(self._layout.shape_of(batch))

    def launch(
        self, batch: Ragged, target: Vectors | DeviceRows, *, normalize: bool, shape: Shape | None = None
    ) -> Flight:
        """Queue `batch`, its vectors to go to `target`: float32 `(n, dim)` of the host, or rows of DeviceVectors.

        shape: the bucket to take instead of the smallest, or `capacity` for none.
        Raises DeviceMemoryError where the device's memory, or the capacity, is too small for it.
        """
        start_s = time.perf_counter()
        rows = target if isinstance(target, DeviceRows) else None
        if rows and normalize and not self._layout.normalizes:
            raise UsageError(f"engine {self._entry.name} gives no vectors of length 1 on a device: use a packed one")
        need = self._layout.shape_of(batch)
        bucket = self._bucket_for(need, shape)
        if bucket is None and not self.capacity.holds(need):
            raise DeviceMemoryError(f"a batch of {_words(need)}, and there is room for {_words(self.capacity)}")
        room = bucket.room if bucket else next(self._rooms)
        room.finish()
        laid = bucket.laid if bucket else room.laid_out(need)
        self._layout.fill(batch, laid.arrays, normalize=normalize)
        if bucket is None:
            self._bind(room, laid, rows.pointer if rows else room.vectors.pointer)
        elif bucket.is_capturing:
            # Nobody may wait for the device while a graph is captured.
            self.finish()
        self._device.upload(room.host[: laid.n_bytes], room.inputs.pointer)
        laid_s = time.perf_counter()
        self._run(bucket, room, need)
        ran_s = time.perf_counter()
        n_bytes = len(batch) * self._dim * room.host_vectors.itemsize
        if rows is None:
            self._device.download(room.vectors.pointer, room.vector_bytes[:n_bytes])
        elif bucket:
            self._device.copy(room.vectors.pointer, rows.pointer, n_bytes)
        room.flight = Flight(
            room,
            self._device.mark(),
            target if isinstance(target, np.ndarray) else None,
            normalize=normalize and not self._layout.normalizes,
        )
        self.compute_s += ran_s - laid_s
        self.copy_s += time.perf_counter() - ran_s + laid_s - start_s
        return room.flight

    def run_largest(self) -> None:
        """Run a batch that needs all of the capacity: afterwards the library has all the memory that any needs."""
        shape = self._layout.room_for(self.capacity)
        left = shape.n_tokens - shape.longest
        n_others = min(shape.n_sentences - 1, left)
        others = [left // n_others + (row < left % n_others) for row in range(n_others)]
        lengths = [shape.longest, *others]
        batch = Ragged.from_lengths(np.zeros(sum(lengths), dtype=np.int32), lengths)
        vectors = np.empty((len(batch), self._dim), dtype=np.float32)
        self.launch(batch, vectors, normalize=False, shape=self.capacity).finish()

    def finish(self) -> None:
        """Return when nothing is under way."""
        for _ in range(N_ROOMS):
            next(self._rooms).finish()
        for bucket in self._buckets.values():
            bucket.room.finish()

    def close(self) -> None:
        """Release session and memory."""
        self.finish()
        self._buckets.clear()
        self._rooms = cycle(())
        self._session = None
        self._device.close()

    def _warm_up(self, room: _Room) -> None:
        """Run what is bound without a graph: nothing may be loaded or allocated while one is captured."""
        for _ in range(N_WARMUPS):
            self._session.run_with_iobinding(room.binding, self._direct)
            self._device.mark().wait()

    def _bucket_for(self, need: Shape, shape: Shape | None) -> _Bucket | None:
        if shape is not None:
            return self._buckets.get(shape)
        return next((bucket for there, bucket in self._buckets.items() if there.holds(need)), None)

    def _bind(self, room: _Room, laid: _LaidOut, vectors: int) -> None:
        kind, index, binding = self._device.kind, self._device.index, room.binding
        for name, array in laid.arrays.items():
            pointer = room.inputs.pointer + laid.offsets[name]
            binding.bind_input(name, kind, index, array.dtype.type, array.shape, pointer)
        for name, spec in self._layout.constant_specs(laid.shape).items():
            binding.bind_input(name, kind, index, spec.dtype, spec.shape, self._zeros.pointer)
        binding.bind_output(self._entry.output, kind, index, np.float32, (laid.shape.n_sentences, self._dim), vectors)

    def _run(self, bucket: _Bucket | None, room: _Room, shape: Shape) -> None:
        is_capturing = bucket is not None and bucket.is_capturing
        free_bytes = self._device.free_bytes() if is_capturing else 0
        try:
            if bucket and bucket.n_runs == 0:
                self._warm_up(room)
            self._session.run_with_iobinding(room.binding, bucket.options if bucket else self._direct)
        except Exception as error:
            what = f"{self._entry.file}: onnxruntime failed on a batch of {_words(shape)}: {error}"
            raise (DeviceMemoryError if is_out_of_memory(error) else MexmaError)(what) from error
        if bucket and is_capturing:
            bucket.n_runs += 1
            self.graph_bytes += free_bytes - self._device.free_bytes()


OUT_OF_MEMORY = ("out of memory", "failed to allocate memory", "smaller than requested bytes", "cuda failure 2:")
"""Words of CUDA's, of onnxruntime's arena, and of the arena at its limit."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether onnxruntime says that memory of the device ran out."""
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


class _Room:
    """Memory for one batch under way, on both sides: inputs one after another, so that one copy takes them over."""

    def __init__(self, session: Any, device: Device, layout: Layout, capacity: Shape, dim: int) -> None:
        self._layout, self.binding = layout, session.io_binding()
        n_bytes = sum(map(_aligned_bytes_of, layout.specs(layout.room_for(capacity)).values()))
        self.host, self.inputs = device.host_bytes(n_bytes), device.allocate(n_bytes)
        self.vector_bytes = device.host_bytes(capacity.n_sentences * dim * 4)
        self.host_vectors = self.vector_bytes.view(np.float32).reshape(capacity.n_sentences, dim)
        self.vectors = device.allocate(self.vector_bytes.nbytes)
        self.flight: Flight | None = None

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
        if self.flight:
            self.flight.finish()
            self.flight = None


class _Bucket:
    """A shape with memory of its own, bound once."""

    def __init__(self, laid: _LaidOut, room: _Room, options: Any) -> None:
        self.laid, self.room, self.options = laid, room, options
        self.n_runs = 0
        """Counted until the graph has been captured."""

    @property
    def is_capturing(self) -> bool:
        """Whether its next run may capture the graph."""
        return self.n_runs < RUNS_UNTIL_CAPTURED


def _run_options(graph_id: int) -> Any:
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = SILENT
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    # The stream is ours, and so is the waiting.
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


def _bytes_of(spec: ArraySpec) -> int:
    return int(np.dtype(spec.dtype).itemsize) * math.prod(spec.shape)


def _aligned_bytes_of(spec: ArraySpec) -> int:
    return -(-_bytes_of(spec) // ALIGNMENT) * ALIGNMENT


def _words(shape: Shape) -> str:
    return f"{shape.n_sentences} sentences, {shape.n_tokens} tokens"
