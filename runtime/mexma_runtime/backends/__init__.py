"""The objects that run an engine: which there are, choosing one, opening it. A library is imported when chosen."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

from mexma_runtime.backends.base import Backend, BackendOptions
from mexma_runtime.bundle import Bundle
from mexma_runtime.errors import EngineUnavailableError, MissingDependencyError, UsageError
from mexma_runtime.manifest import EngineEntry
from mexma_runtime.types import Dialect, Precision

Word = TypeVar("Word", Precision, Dialect)


class BackendModule(Protocol):
    """What the module of a backend holds."""

    def open_engine(self, bundle: Bundle, engine: EngineEntry, options: BackendOptions) -> Backend:
        """Open `engine`."""

    def library_version(self) -> str:
        """Version of the library; MissingDependencyError or EngineUnavailableError where it does not work."""


@dataclass(frozen=True, kw_only=True)
class BackendSpec:
    """What is known of a backend before its library is imported."""

    name: str
    """As EngineEntry.requires spells it."""
    device: str
    """The kind of device it runs on: `cpu` or `cuda`."""
    module: str | None
    """A BackendModule; None: planned."""
    dialects: tuple[Dialect, ...] = ()
    """What it runs, the best first."""


BACKENDS = (
    BackendSpec(
        name="onnxruntime",
        device="cpu",
        module="mexma_runtime.backends.onnxruntime_cpu",
        dialects=(Dialect.FUSED, Dialect.PORTABLE),
    ),
    BackendSpec(name="openvino", device="cpu", module=None),
    BackendSpec(name="onnxruntime", device="cuda", module=None),
    BackendSpec(name="tensorrt", device="cuda", module=None),
)


@dataclass(frozen=True, kw_only=True)
class BackendStatus:
    """Whether a backend works on this machine."""

    name: str
    device: str
    version: str | None
    """Of its library; None where it does not work."""
    problem: str | None
    """Why it does not work; None where it does."""


def choose_backend(device: str, name: str | None = None) -> BackendSpec:
    """The backend `name` for `device` (`cpu`; this version refuses `cuda` and `cuda:1`), or the first there is."""
    kind, _, index = device.partition(":")
    if kind not in {spec.device for spec in BACKENDS} or (index and (kind == "cpu" or not index.isdecimal())):
        raise UsageError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    there = [spec for spec in BACKENDS if spec.module]
    fitting = [spec for spec in there if spec.device == kind and name in (None, spec.name)]
    if fitting:
        return fitting[0]
    listed = ", ".join(f"{spec.name} on {spec.device}" for spec in there)
    if name is not None and name not in {spec.name for spec in BACKENDS}:
        raise EngineUnavailableError(f"there is no backend {name!r}; this version has {listed}")
    wanted = f"{name} on {device}" if name else f"a backend for device {device!r}"
    raise EngineUnavailableError(f"{wanted} is not in this version, and nothing was used in its place; it has {listed}")


def choose_engine(
    bundle: Bundle, backend: BackendSpec, *, precision: str | None = None, dialect: str | None = None
) -> EngineEntry:
    """The bundle's engine that `backend` runs best, of the asked precision and dialect.

    No precision: the only one there is, or fp32. Raises EngineUnavailableError that lists what the bundle has.
    """
    wanted_precision = _member(Precision, "precision", precision)
    wanted_dialect = _member(Dialect, "dialect", dialect)
    runnable = [engine for engine in bundle.manifest.engines if backend.name in engine.requires]
    if wanted_precision is None:
        there = {engine.precision for engine in runnable}
        wanted_precision = there.pop() if len(there) == 1 else Precision.FP32
    fitting = [
        engine
        for engine in runnable
        if engine.precision == wanted_precision
        and (engine.dialect in backend.dialects if wanted_dialect is None else engine.dialect == wanted_dialect)
    ]
    if not fitting:
        listed = ", ".join(f"{e.name} (for {' or '.join(e.requires) or 'no backend'})" for e in bundle.manifest.engines)
        wanted = f"{wanted_precision} engine" + (f" in dialect {wanted_dialect}" if wanted_dialect else "")
        raise EngineUnavailableError(
            f"{bundle.folder}: no {wanted} for backend {backend.name}; the bundle has {listed or 'no engines'}: "
            "ask for one of these, or export the missing one into the same bundle"
        )
    preference = list(backend.dialects)
    return min(fitting, key=lambda engine: preference.index(engine.dialect) if wanted_dialect is None else 0)


def runnable_engines(bundle: Bundle, device: str) -> list[tuple[str, EngineEntry]]:
    """Every backend that serves `device`, by name, with each engine it runs: the best dialect first, then fp32.

    Raises as `choose_backend` where there is none.
    """
    choose_backend(device)
    kind = device.partition(":")[0]
    return [
        (spec.name, engine)
        for spec in BACKENDS
        if spec.module and spec.device == kind
        for dialect in spec.dialects
        for engine in sorted(bundle.manifest.engines, key=lambda engine: list(Precision).index(engine.precision))
        if engine.dialect == dialect and spec.name in engine.requires
    ]


def open_backend(
    bundle: Bundle, engine: EngineEntry, options: BackendOptions, *, backend: str | None = None
) -> Backend:
    """Open `engine` on `options.device`, with the backend of that name or the first that serves the device.

    Raises EngineUnavailableError, MissingDependencyError or BundleError; never takes another device or backend instead.
    """
    spec = choose_backend(options.device, backend)
    assert spec.module is not None
    module = cast("BackendModule", importlib.import_module(spec.module))
    return module.open_engine(bundle, engine, options)


def backend_statuses() -> list[BackendStatus]:
    """For each backend, whether its library is here and why it does not work where it does not."""
    return [_status(spec) for spec in BACKENDS]


def _status(spec: BackendSpec) -> BackendStatus:
    version: str | None = None
    problem: str | None = "not in this version of mexma-runtime"
    if spec.module:
        try:
            version, problem = cast("BackendModule", importlib.import_module(spec.module)).library_version(), None
        except (EngineUnavailableError, MissingDependencyError) as error:
            problem = str(error)
    return BackendStatus(name=spec.name, device=spec.device, version=version, problem=problem)


def _member(kind: type[Word], what: str, value: str | None) -> Word | None:
    try:
        return None if value is None else kind(value)
    except ValueError:
        raise UsageError(f"{what}: expected one of {', '.join(kind)}, got {value!r}") from None
