"""An NVIDIA GPU through NVIDIA's own bindings of the CUDA runtime: memory, one stream, events."""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mexma_runtime.errors import DeviceError, DeviceMemoryError, MissingDependencyError


@functools.cache
def import_cudart() -> Any:
    """cuda.bindings.runtime; MissingDependencyError where it is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MissingDependencyError("cuda-bindings", needed_for="running an engine on a GPU", extra="gpu") from error
    return runtime


def call(function: Any, *arguments: Any) -> Any:
    """What a function of the CUDA runtime gives; DeviceMemoryError or DeviceError where it fails."""
    cudart = import_cudart()
    error, *results = function(*arguments)
    if error != cudart.cudaError_t.cudaSuccess:
        name = getattr(function, "__name__", "a CUDA function")
        kind = DeviceMemoryError if error == cudart.cudaError_t.cudaErrorMemoryAllocation else DeviceError
        raise kind(f"{name} failed: {error.name} ({int(error)})")
    return results[0] if len(results) == 1 else tuple(results)


class CudaAllocation:
    """Memory of a GPU, freed with this object."""

    def __init__(self, n_bytes: int, stream: Any) -> None:
        cudart = import_cudart()
        self.pointer = int(call(cudart.cudaMalloc, max(1, n_bytes)))
        _release_with(self, cudart.cudaFree, self.pointer)
        call(cudart.cudaMemsetAsync, self.pointer, 0, n_bytes, stream)


class CudaEvent:
    """An event that was recorded in a stream; once waited for, it is there for the next recording."""

    def __init__(self, event: Any, spare: deque[Any]) -> None:
        self._event, self._spare = event, spare

    def wait(self) -> None:
        """Return when all that was queued before it is done; called once."""
        call(import_cudart().cudaEventSynchronize, self._event)
        self._spare.append(self._event)


class CudaGraph:
    """A graph that was captured from a stream, freed with this object."""

    def __init__(self, executable: Any, stream: Any) -> None:
        cudart = import_cudart()
        self._launch, self._executable, self._stream = cudart.cudaGraphLaunch, executable, stream
        _release_with(self, cudart.cudaGraphExecDestroy, executable)

    def launch(self) -> None:
        """Queue the graph on its stream."""
        call(self._launch, self._executable, self._stream)


class CudaDevice:
    """A GPU and one stream."""

    kind = "cuda"

    def __init__(self, index: int, *, spinning: bool = True) -> None:
        self._cudart = cudart = import_cudart()
        self.index, self._spinning = index, spinning
        call(cudart.cudaSetDevice, index)
        self._stream: Any = call(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking)
        self._spare: deque[Any] = deque()
        """Events that nobody waits for."""

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream)

    @contextmanager
    def active(self) -> Iterator[None]:
        """While it is open, this is the calling thread's GPU."""
        cudart = self._cudart
        before = call(cudart.cudaGetDevice)
        call(cudart.cudaSetDevice, self.index)
        try:
            yield
        finally:
            if before != self.index:
                call(cudart.cudaSetDevice, before)

    def allocate(self, n_bytes: int) -> CudaAllocation:
        """So many zeros; DeviceMemoryError where they do not fit."""
        return CudaAllocation(n_bytes, self._stream)

    def host_bytes(self, n_bytes: int) -> NDArray[np.uint8]:
        """Page-locked memory, released with the array."""
        cudart = self._cudart
        pointer = int(call(cudart.cudaHostAlloc, max(1, n_bytes), cudart.cudaHostAllocDefault))
        buffer = (ctypes.c_uint8 * n_bytes).from_address(pointer)
        _release_with(buffer, cudart.cudaFreeHost, pointer)
        return np.ctypeslib.as_array(buffer)

    def upload(self, source: NDArray[np.uint8], pointer: int) -> None:
        """Queue a copy to the device."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(self._cudart.cudaMemcpyAsync, pointer, source.ctypes.data, source.nbytes, kind, self._stream)

    def download(self, pointer: int, target: NDArray[np.uint8]) -> None:
        """Queue a copy from the device."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(self._cudart.cudaMemcpyAsync, target.ctypes.data, pointer, target.nbytes, kind, self._stream)

    def copy(self, source: int, target: int, n_bytes: int) -> None:
        """Queue a copy within the device."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        call(self._cudart.cudaMemcpyAsync, target, source, n_bytes, kind, self._stream)

    def capture(self, work: Callable[[], None]) -> CudaGraph:
        """What `work` queues, as a graph. Other threads may use CUDA meanwhile, and `work` may take memory."""
        cudart = self._cudart
        call(cudart.cudaStreamBeginCapture, self._stream, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed)
        try:
            work()
        except BaseException:
            with suppress(DeviceError):
                call(cudart.cudaGraphDestroy, call(cudart.cudaStreamEndCapture, self._stream))
            raise
        graph = call(cudart.cudaStreamEndCapture, self._stream)
        try:
            return CudaGraph(call(cudart.cudaGraphInstantiate, graph, 0), self._stream)
        finally:
            call(cudart.cudaGraphDestroy, graph)

    def record_event(self) -> CudaEvent:
        """Record an event: it is over when all that was queued before is done."""
        cudart = self._cudart
        try:
            event = self._spare.popleft()
        except IndexError:
            flags = cudart.cudaEventDisableTiming | (0 if self._spinning else cudart.cudaEventBlockingSync)
            event = call(cudart.cudaEventCreateWithFlags, flags)
        call(cudart.cudaEventRecord, event, self._stream)
        return CudaEvent(event, self._spare)

    def free_bytes(self) -> int:
        """Memory of the device that nobody has."""
        free, _ = call(self._cudart.cudaMemGetInfo)
        return int(free)

    def close(self) -> None:
        """Release stream and events; calling it twice is fine."""
        if self._stream is not None:
            while self._spare:
                call(self._cudart.cudaEventDestroy, self._spare.pop())
            call(self._cudart.cudaStreamDestroy, self._stream)
            self._stream = None


def _release_with(owner: object, release: Callable[..., Any], handle: Any) -> None:
    """Call `release(handle)` when `owner` is gone; not before at exit, when a batch may be under way."""
    weakref.finalize(owner, release, handle).atexit = False
