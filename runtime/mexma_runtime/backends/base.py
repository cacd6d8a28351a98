"""What a backend is: the object that runs one engine of a bundle and hides the library that does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mexma_runtime.batching import BatchPolicy
from mexma_runtime.types import Ragged, Vectors


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """What a caller may ask of a backend; None leaves the choice to it."""

    device: str = "cpu"
    n_threads: int | None = None
    """Threads that compute one batch; None: the physical cores that the process may use."""
    spinning: bool | None = None
    """Whether idle threads wait busily: lower latency, more processor time. Only onnxruntime has the choice."""


@dataclass(frozen=True, kw_only=True)
class BackendInfo:
    """What was chosen; nothing in it is a wish."""

    backend: str
    """`onnxruntime` or `openvino`."""
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


class Backend(Protocol):
    """Runs one engine. `run` is called by one thread at a time."""

    copy_s: float
    """Seconds that `run` has spent so far on getting ids in and vectors out: padding, binding, copies."""
    compute_s: float
    """Seconds that `run` has spent so far inside the library's own run."""

    @property
    def info(self) -> BackendInfo:
        """What was chosen."""

    def run(self, batch: Ragged, out: Vectors) -> None:
        """Embed `batch` (n sentences, none of them empty) into `out`: float32 `(n, dim)`, C-contiguous, the
        caller's; row i is sentence i's pooled vector, not normalised."""

    def close(self) -> None:
        """Release the engine; calling it twice is fine."""
