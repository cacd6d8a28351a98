"""The objects that run an engine: which there are, choosing one, opening it. A library is imported when chosen."""

from __future__ import annotations

from dataclasses import dataclass

from mexma_runtime.backends.base import Backend, BackendOptions
from mexma_runtime.backends.choice import DEFAULT_RECIPES, choose, runnable_engines
from mexma_runtime.backends.registry import BACKENDS, BackendSpec, module_of, serving
from mexma_runtime.bundle import Bundle
from mexma_runtime.errors import EngineUnavailableError, MissingDependencyError
from mexma_runtime.manifest import EngineEntry

__all__ = [
    "BACKENDS",
    "DEFAULT_RECIPES",
    "BackendSpec",
    "BackendStatus",
    "backend_statuses",
    "choose",
    "open_backend",
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
