"""What a caller may ask of a backend, on a CPU and on a GPU; None leaves the choice to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, TypeAlias, TypeVar

from mexma_runtime.bundle.tuning import Tuning
from mexma_runtime.errors import UsageError
from mexma_runtime.hardware import most_threads

Word = TypeVar("Word", bound=StrEnum)


class Graphs(StrEnum):
    """When a GPU's graphs are captured, one for each shape of small batches."""

    AT_LOAD = "at-load"
    FIRST_USE = "first-use"
    """When the first batch of a shape comes, which then takes a few milliseconds more."""
    NEVER = "never"


class Attention(StrEnum):
    """Which of onnxruntime's attention kernels a GPU runs packed tokens with; they differ in the tiles they compute."""

    EFFICIENT = "efficient"
    """64 tokens by 64 at a time: faster where most sentences are as short."""
    FLASH = "flash"
    """128 by 128: faster for longer texts."""
    AUTO = "auto"
    """Either, by the mean length of each batch (Tuning.flash_above_mean_tokens): two sessions, so more memory. Where
    there is no room for both, or no flash kernel, efficient alone; `encoder.info.attention` says so. Not the default
    until `make gpu-check` has run it on a GPU."""


@dataclass(frozen=True, kw_only=True)
class CpuOptions:
    """What may be asked of a backend on the CPU."""

    n_threads: int | None = None
    """Threads that compute one batch; None: the physical cores that the process may use."""
    spinning: bool | None = None
    """Whether idle threads wait busily: lower latency, more processor time. OpenVINO's never do."""

    def __post_init__(self) -> None:
        most = most_threads()
        if self.n_threads is not None and not 1 <= self.n_threads <= most:
            raise UsageError(f"n_threads: expected 1 to {most}, got {self.n_threads}")


@dataclass(frozen=True, kw_only=True)
class GpuOptions:
    """What may be asked of a backend on a GPU."""

    spinning: bool | None = None
    """Whether the thread that waits for the GPU does so busily; None: yes."""
    graphs: Graphs | None = None
    """None: at loading."""
    attention: Attention | None = None
    """Of packed engines; None: efficient."""
    memory_limit: int | None = None
    """Bytes of the GPU's memory that onnxruntime may take for weights and activations, in all sessions together; None:
    no limit."""
    tuning: Tuning | None = None
    """None: what was measured on a GPU like it, or the defaults."""


BackendOptions: TypeAlias = CpuOptions | GpuOptions


def resolve_backend_options(
    kind: str,
    device: str | Sequence[str],
    *,
    n_threads: int | None = None,
    spinning: bool | None = None,
    graphs: str | None = None,
    attention: str | None = None,
    memory_limit: int | None = None,
) -> BackendOptions:
    """The options for a device of `kind`, `cpu` or `cuda`; UsageError, which names `device`, for those of the other."""
    asked: dict[str, Any] = {
        "n_threads": n_threads,
        "spinning": spinning,
        "graphs": resolve(Graphs, "graphs", graphs),
        "attention": resolve(Attention, "attention", attention),
        "memory_limit": memory_limit,
    }
    options, others = (CpuOptions, "a GPU") if kind == "cpu" else (GpuOptions, "CPUs")
    given = {name: value for name, value in asked.items() if value is not None}
    own = {field.name for field in fields(options)}
    for name, value in given.items():
        if name not in own:
            raise UsageError(f"{name}={value} is for {others}, and device={device!r} was asked for: leave it out")
    return options(**given)


def resolve(kind: type[Word], what: str, value: str | None) -> Word | None:
    """The member of `kind` that was asked for as `what`; UsageError where there is none of that name."""
    try:
        return None if value is None else kind(value)
    except ValueError:
        raise UsageError(f"{what}: expected one of {', '.join(kind)}, got {value!r}") from None
