"""The objects that run an engine: which there are, choosing one, opening it. A library is imported when chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from mexma_runtime.backends.base import Attention, Backend, BackendOptions, Graphs
from mexma_runtime.backends.choice import DEFAULT_RECIPES, choose, devices_of, resolve, runnable_engines, runners
from mexma_runtime.backends.gpu.backend import DeviceBackend
from mexma_runtime.backends.gpu.buckets import STEPS
from mexma_runtime.backends.gpu.cuda_checks import all_gpus
from mexma_runtime.backends.several import SeveralBackends
from mexma_runtime.backends.support import BACKENDS, BackendSpec, module_of, serving
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.bundle.plans import Target
from mexma_runtime.bundle.tuning import Tuning, choose_limit, write_tuning
from mexma_runtime.errors import DeviceError, EngineUnavailableError, MissingDependencyError, UsageError

__all__ = [
    "BACKENDS",
    "DEFAULT_RECIPES",
    "Attention",
    "BackendSpec",
    "BackendStatus",
    "Graphs",
    "backend_statuses",
    "choose",
    "gpu_lines",
    "open_backend",
    "open_backends",
    "plan_target",
    "resolve",
    "runnable_engines",
    "runners",
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


def open_backend(
    bundle: Bundle, engine: EngineEntry, options: BackendOptions, *, backend: str | None = None
) -> Backend:
    """Open `engine` on `options.device`, with the backend of that name or the first that serves the device.

    Raises EngineUnavailableError, MissingDependencyError or BundleError; never takes another device or backend instead.
    """
    return module_of(serving(options.device, backend)[0]).open_engine(bundle, engine, options)


def open_backends(
    bundle: Bundle,
    engine: EngineEntry,
    options: BackendOptions,
    device: str | Sequence[str],
    *,
    backend: str | None = None,
) -> Backend:
    """The same on one `device`, in place of the options', or on several that share the batches of each call."""
    opened: list[Backend] = []
    try:
        for one in devices_of(device):
            of_device = dataclasses.replace(options, device=one)
            opened.append(open_backend(bundle, engine, of_device, backend=backend))
    except BaseException:
        for there in opened:
            there.close()
        raise
    return opened[0] if len(opened) == 1 else SeveralBackends(opened)


def tune(
    bundle: Bundle, device: str, *, progress: Callable[[int, int], None] | None = None
) -> tuple[EngineEntry, Tuning, Path]:
    """Measure the engine that `device`, a GPU, runs by default, and keep in the bundle's folder what was found.

    Returns the engine, what was found and where it is kept. Raises as `choose` and `open_backend`.
    """
    spec, entry = choose(bundle, device=device)
    if spec.device == "cpu":
        raise UsageError(f"--tune measures GPUs, and {device!r} is none: --device cuda")
    widest = Tuning(graph_up_to_tokens=STEPS[-1])
    options = BackendOptions(device=device, graphs=Graphs.AT_LOAD, tuning=widest)
    opened = open_backend(bundle, entry, options, backend=spec.name)
    assert isinstance(opened, DeviceBackend)
    with closing(opened):
        samples = opened.measure(dim=bundle.manifest.dim, progress=progress)
        info = opened.info
    found = Tuning(
        graph_up_to_tokens=choose_limit(samples), max_batch_tokens=info.policy.max_batch_tokens, samples=samples
    )
    return entry, found, write_tuning(bundle.folder, info.processor, entry, found)


def plan_target(device: str) -> Target:
    """What TensorRT plans have to be built for, to run on `device`, which becomes the calling thread's GPU.

    An error says what is missing where it, or TensorRT, is not there.
    """
    from mexma_runtime.backends.gpu.tensorrt import target_here

    serving(device, "tensorrt")
    return target_here(int(device.partition(":")[2] or 0))


def backend_statuses() -> list[BackendStatus]:
    """For each backend, whether its library is here and why it does not work where it does not."""
    return [_status(spec) for spec in BACKENDS]


def gpu_lines() -> list[str]:
    """A line for each NVIDIA GPU that this process sees; none without a driver, or NVIDIA's bindings."""
    try:
        return [f"cuda:{gpu.index}: {gpu.description}, {gpu.memory_bytes / 1e9:.0f} GB" for gpu in all_gpus()]
    except (MissingDependencyError, DeviceError):
        return []


def _status(spec: BackendSpec) -> BackendStatus:
    version: str | None = None
    problem: str | None = None
    try:
        version = module_of(spec).library_version()
    except (EngineUnavailableError, MissingDependencyError) as error:
        problem = str(error)
    return BackendStatus(name=spec.name, device=spec.device, version=version, problem=problem)
