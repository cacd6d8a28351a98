"""Who runs what: the backends there are and the engines that each takes, before any of their libraries is imported."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol, cast

from mexma_runtime.backends.base import Backend
from mexma_runtime.backends.options import CpuOptions, GpuOptions
from mexma_runtime.backends.requirements import version_key
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.bundle.rtx_capabilities import listed_capabilities
from mexma_runtime.errors import EngineUnavailableError, UsageError
from mexma_runtime.types import FLOATS, QUANTIZED, Dialect, Precision

MIN_ONNXRUNTIME_GPU = "1.31"
"""What the backend was written for, and measured with; packed graphs are of its kernels."""


class BackendModule(Protocol):
    """What the module of a backend holds."""

    def library_version(self) -> str:
        """Version of the library; MissingDependencyError or EngineUnavailableError where it does not work."""

    def obstacle(self, engine: EngineEntry) -> str | None:
        """Why this processor must not run `engine`; None: it may. Does not import the library."""


class CpuModule(BackendModule, Protocol):
    """The same of a backend on the CPU."""

    def open_engine(self, bundle: Bundle, engine: EngineEntry, options: CpuOptions) -> Backend:
        """Open `engine`."""


class GpuModule(BackendModule, Protocol):
    """The same of a backend on GPUs."""

    def open_engine(self, bundle: Bundle, engine: EngineEntry, options: GpuOptions, index: int) -> Backend:
        """Open `engine` on the GPU of that index."""


@dataclass(frozen=True, kw_only=True)
class Support:
    """Engines of one dialect that a backend runs, and since when."""

    dialect: Dialect
    precisions: Collection[Precision]
    since: str
    """The least version of the backend's library."""
    around: Precision = Precision.FP32
    """Of int8 and fp8: what their other operators compute in."""
    has_scale_groups: bool = False
    """Of int8: whether scales a group of channels are found in integers, too."""
    is_default: bool = True
    """Whether such an engine is taken without being asked for by its dialect or its name."""


@dataclass(frozen=True, kw_only=True)
class BackendSpec:
    """What is known of a backend before its library is imported."""

    name: str
    """As EngineEntry.requires spells it."""
    device: str
    """The kind of device it runs on: `cpu` or `cuda`."""
    module: str
    """A BackendModule."""
    supports: tuple[Support, ...]
    """What it runs, the best dialect first."""
    takes_plans: bool = False
    """Whether it runs plans, built from an engine's graph, and not the graph itself."""
    library: str | None = None
    """The module of its library, where that has another name."""
    gpus: str = ""
    """Those that it runs on, where these are not all that CUDA 13 has code for."""
    runs_all_of: str | None = None
    """Another backend whose engines it runs too: older bundles name that one alone."""

    @property
    def dialects(self) -> tuple[Dialect, ...]:
        """Those that are taken without being asked for, the best first."""
        return tuple(dict.fromkeys(support.dialect for support in self.supports if support.is_default))

    def runs(self, engine: EngineEntry) -> bool:
        """Whether `engine` is for this backend and its device."""
        return bool({self.name, self.runs_all_of} & engine.requires.keys()) and any(
            engine.dialect is support.dialect and engine.precision in support.precisions for support in self.supports
        )


def _of_plans(*, since: str) -> tuple[Support, ...]:
    """What plans are built from, by either library."""
    return (
        Support(dialect=Dialect.PORTABLE, precisions=(Precision.FP16,), since=since),
        Support(dialect=Dialect.PORTABLE, precisions=QUANTIZED, around=Precision.FP16, since=since),
    )


BACKENDS = (
    BackendSpec(
        name="onnxruntime",
        device="cpu",
        module="mexma_runtime.backends.cpu.onnxruntime",
        supports=(
            # 1.20.0 fails in SkipLayerNormalization of fp16.
            Support(dialect=Dialect.FUSED, precisions=(*FLOATS, Precision.INT8), since="1.20.1"),
            Support(dialect=Dialect.PORTABLE, precisions=(*FLOATS, Precision.INT8), since="1.20.1"),
            # The only release that these were run with.
            Support(dialect=Dialect.PORTABLE, precisions=QUANTIZED, around=Precision.FP16, since="1.31"),
        ),
    ),
    BackendSpec(
        name="openvino",
        device="cpu",
        module="mexma_runtime.backends.cpu.openvino",
        # The only release that int8 was measured with.
        supports=(
            Support(
                dialect=Dialect.PORTABLE,
                precisions=(Precision.FP32, Precision.INT8),
                has_scale_groups=True,
                since="2026.4",
            ),
        ),
    ),
    BackendSpec(
        name="onnxruntime",
        device="cuda",
        module="mexma_runtime.backends.gpu.onnxruntime",
        supports=(
            Support(dialect=Dialect.PACKED, precisions=FLOATS, since=MIN_ONNXRUNTIME_GPU),
            Support(dialect=Dialect.FUSED, precisions=FLOATS, since=MIN_ONNXRUNTIME_GPU),
            Support(dialect=Dialect.PORTABLE, precisions=FLOATS, since=MIN_ONNXRUNTIME_GPU, is_default=False),
        ),
    ),
    BackendSpec(
        name="tensorrt",
        device="cuda",
        module="mexma_runtime.backends.gpu.plans.tensorrt",
        # The oldest release that the builder's calls and the graphs' operators were checked against.
        supports=_of_plans(since="10.16"),
        takes_plans=True,
    ),
    BackendSpec(
        name="tensorrt-rtx",
        device="cuda",
        module="mexma_runtime.backends.gpu.plans.tensorrt_rtx",
        # The only release whose compiler has read the graphs.
        supports=_of_plans(since="1.7"),
        takes_plans=True,
        library="tensorrt_rtx",
        gpus=listed_capabilities(),
        runs_all_of="tensorrt",
    ),
)
"""Who runs what: nothing else in the project says so."""


def required_versions(
    dialect: Dialect, precision: Precision, *, around: Precision = Precision.FP32, has_scale_groups: bool = False
) -> dict[str, str]:
    """Each backend that runs such engines on some device, and the least version of its library: EngineEntry.requires.

    `around` and `has_scale_groups` are of int8 and fp8: see Support.
    """
    found: dict[str, str] = {}
    for spec in BACKENDS:
        for support in spec.supports:
            if (support.dialect, precision in support.precisions) != (dialect, True):
                continue
            if precision in QUANTIZED and (support.around is not around or has_scale_groups > support.has_scale_groups):
                continue
            found[spec.name] = min(support.since, found.get(spec.name, support.since), key=version_key)
    return found


def runs_by(engine: EngineEntry, device: str, backend: str) -> bool:
    """Whether the backend of that name runs `engine` on `device`."""
    return any(spec.runs(engine) for spec in serving(device, backend))


def device_for(engine: EngineEntry, device: str) -> str | None:
    """Where the graph of `engine` runs when `device` is there for it: there, else on the CPU, else nowhere (None)."""
    for there in (device, "cpu"):
        if any(spec.runs(engine) and not spec.takes_plans for spec in serving(there, None)):
            return there
    return None


def serving(device: str, name: str | None) -> list[BackendSpec]:
    """The backends for `device` (`cpu`, `cuda`, `cuda:1`), or the one of that name."""
    kind, _, index = device.partition(":")
    if kind not in {spec.device for spec in BACKENDS} or (index and (kind == "cpu" or not index.isdecimal())):
        raise UsageError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    fitting = [spec for spec in BACKENDS if spec.device == kind and name in (None, spec.name)]
    if fitting:
        return fitting
    listed = ", ".join(f"{spec.name} on {spec.device}" for spec in BACKENDS)
    if name is not None and name not in {spec.name for spec in BACKENDS}:
        raise EngineUnavailableError(f"there is no backend {name!r}; this version has {listed}")
    wanted = f"{name} on {device}" if name else f"a backend for device {device!r}"
    raise EngineUnavailableError(f"{wanted} is not in this version, and nothing was used in its place; it has {listed}")


def module_of(spec: BackendSpec) -> BackendModule:
    """The module of a backend that this version has."""
    return cast("BackendModule", importlib.import_module(spec.module))
