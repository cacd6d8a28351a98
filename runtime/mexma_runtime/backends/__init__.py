"""The objects that run an engine: which there are, choosing one, opening it. A library is imported when chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from mexma_runtime.backends.base import Backend, BackendOptions, Graphs
from mexma_runtime.backends.choice import DEFAULT_RECIPES, choose, devices_of, runnable_engines
from mexma_runtime.backends.registry import BACKENDS, BackendSpec, module_of, serving
from mexma_runtime.backends.several import SeveralBackends
from mexma_runtime.bundle import Bundle
from mexma_runtime.errors import EngineUnavailableError, MissingDependencyError, UsageError
from mexma_runtime.manifest import EngineEntry

__all__ = [
    "BACKENDS",
    "DEFAULT_RECIPES",
    "BackendSpec",
    "BackendStatus",
    "backend_statuses",
    "choose",
    "open_backend",
    "open_backends",
    "resolve_graphs",
    "runnable_engines",
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
    """The same on one device, or on several that share the batches of each call."""
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


def resolve_graphs(name: str | None) -> Graphs | None:
    """The choice of that name; UsageError where there is none."""
    try:
        return None if name is None else Graphs(name)
    except ValueError:
        raise UsageError(f"graphs: expected one of {', '.join(Graphs)}, got {name!r}") from None


def backend_statuses() -> list[BackendStatus]:
    """For each backend, whether its library is here and why it does not work where it does not."""
    return [_status(spec) for spec in BACKENDS]


def _status(spec: BackendSpec) -> BackendStatus:
    version: str | None = None
    problem: str | None = "not in this version of mexma-runtime"
    if spec.module:
        try:
            version, problem = module_of(spec).library_version(), None
        except (EngineUnavailableError, MissingDependencyError) as error:
            problem = str(error)
    return BackendStatus(name=spec.name, device=spec.device, version=version, problem=problem)
