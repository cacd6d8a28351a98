"""The objects that run an engine: which there are, choosing one, opening it. A library is imported when chosen."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mexma_runtime.backends.base import Backend
from mexma_runtime.backends.choice import DEFAULT_RECIPES, choose, devices_of, require_device, runnable_engines, runners
from mexma_runtime.backends.options import (
    Attention,
    BackendOptions,
    CpuOptions,
    GpuOptions,
    Graphs,
    resolve_backend_options,
)
from mexma_runtime.backends.requirements import require_memory_left
from mexma_runtime.backends.several import SeveralBackends
from mexma_runtime.backends.support import (
    BACKENDS,
    BackendSpec,
    CpuModule,
    GpuModule,
    device_for,
    module_of,
    required_versions,
    runs_by,
    serving,
)
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.bundle.plans import Platform, RtxPlatform
from mexma_runtime.bundle.tuning import Tuning, choose_crossover, choose_limit, writable_file, write_tuning
from mexma_runtime.errors import (
    DeviceError,
    EngineUnavailableError,
    MissingDependencyError,
    UsageError,
    file_errors,
)
from mexma_runtime.types import Dialect

__all__ = [
    "BACKENDS",
    "DEFAULT_RECIPES",
    "Attention",
    "BackendSpec",
    "BackendStatus",
    "Graphs",
    "Tuned",
    "backend_statuses",
    "choose",
    "device_for",
    "gpu_lines",
    "has_gpu_driver",
    "open_backend",
    "open_backends",
    "plan_platform",
    "require_device",
    "require_memory_left",
    "required_versions",
    "resolve_backend_options",
    "rtx_platform",
    "runnable_engines",
    "runners",
    "runs_by",
    "tune",
]


@dataclass(frozen=True, kw_only=True)
class BackendStatus:
    """Whether a backend works on this machine."""

    name: str
    device: str
    version: str | None
    """Of its library; None where it does not work."""
    problem: str | None
    """Why it does not work; None where it does."""
    gpus: str
    """Those that it runs on, where these are not all."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What `tune` has found."""

    engine: EngineEntry
    tuning: Tuning
    file: Path
    """Where it is kept."""
    attention: str
    """The kernels that were measured with, and why no others, in words; empty of engines that have no choice."""


def open_backend(
    bundle: Bundle, engine: EngineEntry, options: BackendOptions, device: str = "cpu", *, backend: str | None = None
) -> Backend:
    """Open `engine` on `device`, with the backend of that name or the first that serves the device.

    Raises EngineUnavailableError, MissingDependencyError or BundleError; never takes another device or backend instead.
    """
    spec = serving(device, backend)[0]
    if not spec.runs(engine):
        raise EngineUnavailableError(
            f"engine {engine.name} is for {' or '.join(runners(engine)) or 'no backend'}, not for {spec.name} on "
            f"{spec.device}"
        )
    for name in (engine.file, *engine.weights):
        path = bundle.path(name)
        with file_errors(path, "cannot be read"):  # the libraries do not say why
            path.open("rb").close()
    module = module_of(spec)
    if isinstance(options, CpuOptions):
        return cast("CpuModule", module).open_engine(bundle, engine, options)
    return cast("GpuModule", module).open_engine(bundle, engine, options, int(device.partition(":")[2] or 0))


def open_backends(
    bundle: Bundle,
    engine: EngineEntry,
    options: BackendOptions,
    device: str | Sequence[str],
    *,
    backend: str | None = None,
) -> Backend:
    """The same on one `device`, or on several that share the batches of each call."""
    opened: list[Backend] = []
    try:
        for one in devices_of(device):
            opened.append(open_backend(bundle, engine, options, one, backend=backend))
    except BaseException:
        for there in opened:
            there.close()
        raise
    return opened[0] if len(opened) == 1 else SeveralBackends(opened)


def tune(bundle: Bundle, device: str, *, progress: Callable[[str, int, int], None] | None = None) -> Tuned:
    """Measure the engine that `device`, a GPU, runs by default, and keep in the bundle's folder what was found.

    A packed one is opened with both attention kernels; where there is but one, graphs alone are measured. `progress` is
    told what is measured, how many were and how many there are. Raises as `choose`, `writable_file` and `open_backend`.
    """
    from mexma_runtime.backends.gpu.backend import DeviceBackend
    from mexma_runtime.backends.gpu.buckets import STEPS

    spec, entry = choose(bundle, device=device)
    if spec.device == "cpu":
        raise UsageError(f"--tune measures GPUs, and {device!r} is none: --device cuda")
    writable_file(bundle.folder)
    attention = Attention.AUTO if entry.dialect is Dialect.PACKED else None
    options = GpuOptions(graphs=Graphs.AT_LOAD, attention=attention, tuning=Tuning(graph_up_to_tokens=STEPS[-1]))
    opened = open_backend(bundle, entry, options, device, backend=spec.name)
    assert isinstance(opened, DeviceBackend)
    dim = bundle.manifest.dim
    told = {what: functools.partial(progress, what) if progress else None for what in ("graphs", "attention")}
    with closing(opened):
        samples = opened.measure(dim=dim, progress=told["graphs"])
        attention_samples = opened.measure_attention(dim=dim, progress=told["attention"])
        info = opened.info
    found = Tuning(
        graph_up_to_tokens=choose_limit(samples),
        max_batch_tokens=info.policy.max_batch_tokens,
        flash_above_mean_tokens=choose_crossover(attention_samples),
        samples=samples,
        attention_samples=attention_samples,
    )
    file = write_tuning(bundle.folder, info.processor, entry, found)
    return Tuned(engine=entry, tuning=found, file=file, attention=info.attention)


def plan_platform(device: str) -> Platform:
    """What TensorRT plans have to be built for, to run on `device`, which becomes the calling thread's GPU.

    An error says what is missing where it, or TensorRT, is not there.
    """
    from mexma_runtime.backends.gpu.plans.tensorrt import platform_here

    serving(device, "tensorrt")
    return platform_here(int(device.partition(":")[2] or 0))


def rtx_platform(capabilities: Sequence[str]) -> RtxPlatform:
    """What plans of TensorRT for RTX have to be built for, to run on GPUs of `capabilities`; needs no GPU.

    MissingDependencyError where it is not installed.
    """
    from mexma_runtime.backends.tensorrt_library import TENSORRT_RTX

    return RtxPlatform(capabilities=list(capabilities), tensorrt_rtx=str(TENSORRT_RTX.load().__version__))


def backend_statuses() -> list[BackendStatus]:
    """For each backend, whether its library is here and why it does not work where it does not."""
    return [_status(spec) for spec in BACKENDS]


def gpu_lines() -> list[str]:
    """A line for each NVIDIA GPU that this process sees; none without a driver, or NVIDIA's bindings."""
    from mexma_runtime.backends.gpu.cuda_checks import all_gpus

    try:
        return [f"cuda:{gpu.index}: {gpu.description}, {gpu.memory_bytes / 1e9:.0f} GB" for gpu in all_gpus()]
    except (MissingDependencyError, DeviceError):
        return []


def has_gpu_driver() -> bool | None:
    """Whether an NVIDIA driver is here; None where that is not known, without NVIDIA's bindings."""
    from mexma_runtime.backends.gpu.cuda_checks import has_driver

    try:
        return has_driver()
    except (MissingDependencyError, DeviceError):
        return None


def _status(spec: BackendSpec) -> BackendStatus:
    version: str | None = None
    problem: str | None = None
    try:
        version = module_of(spec).library_version()
    except (EngineUnavailableError, MissingDependencyError) as error:
        problem = str(error)
    return BackendStatus(name=spec.name, device=spec.device, version=version, problem=problem, gpus=spec.gpus)
