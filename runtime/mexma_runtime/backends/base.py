"""What a backend is: the object that runs one engine of a bundle and hides the library that does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from mexma_runtime.batching import BatchPolicy, Rows
from mexma_runtime.device_vectors import DeviceRows, DeviceVectors
from mexma_runtime.types import Ragged, Vectors

Finish: TypeAlias = Callable[[], None]
"""Waits until a batch that was started is done, and raises what went wrong with it."""
OnRows: TypeAlias = Callable[[Rows], None]
"""Is told which rows of a batch are done before the others, by any thread."""


def done() -> None:
    """The Finish of a batch that is done already."""


@dataclass(frozen=True, kw_only=True)
class BackendInfo:
    """What was chosen; nothing in it is a wish."""

    backend: str
    """`onnxruntime`, `openvino`, `tensorrt` or `tensorrt-rtx`."""
    version: str
    """Version of the library."""
    device: str
    providers: tuple[str, ...]
    """Execution providers as the library names them, in order."""
    n_threads: int
    spinning: bool
    """Whether idle threads wait busily."""
    processor: str
    """The processor and the instruction sets that the library uses of it."""
    policy: BatchPolicy
    normalizes: bool = False
    """Whether the engine itself gives vectors length 1 where `start` is told to."""
    n_pending: int = 1
    """Batches that a caller may have started and not finished."""
    n_graphs: int = 0
    """Graphs captured, or to be captured on first use."""
    graph_bytes: int = 0
    """Device memory that they had taken when the engine was opened."""
    attention: str = ""
    """Of packed engines: which of onnxruntime's kernels run, and why, in words."""


class Backend(Protocol):
    """Runs one engine. `start` is called by one thread at a time."""

    @property
    def copy_s(self) -> float:
        """Seconds spent so far on getting ids in and vectors out: padding, binding, copies."""

    @property
    def compute_s(self) -> float:
        """Seconds spent so far inside the library's own run, or waiting for the device."""

    @property
    def info(self) -> BackendInfo:
        """What was chosen."""

    def start(
        self, batch: Ragged, out: Vectors | DeviceRows, *, normalize: bool, on_rows: OnRows | None = None
    ) -> Finish:
        """Embed `batch` (n sentences, none of them empty) into `out`: float32 `(n, dim)`, C-contiguous, the caller's,
        or rows of `device_vectors`; row i is sentence i's pooled vector, of length 1 if `normalize`, which is for
        those alone whose `info.normalizes`.

        `out` is filled when the Finish that is returned has been called; until then it must not be touched, but for
        rows that `on_rows` has been told of, which a backend may do that computes a batch in parts.
        """

    def device_vectors(self, shape: tuple[int, ...]) -> DeviceVectors:
        """Room for vectors in the device's memory; UsageError where the engine runs in the host's."""

    def close(self) -> None:
        """Wait for what is under way, and release the engine; calling it twice is fine."""
