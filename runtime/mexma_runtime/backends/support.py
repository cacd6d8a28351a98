"""The backends there are, before any library of theirs is imported."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Protocol, cast

from mexma_runtime.backends.base import Backend, BackendOptions
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.errors import EngineUnavailableError, UsageError
from mexma_runtime.types import Dialect


class BackendModule(Protocol):
    """What the module of a backend holds."""

    def open_engine(self, bundle: Bundle, engine: EngineEntry, options: BackendOptions) -> Backend:
        """Open `engine`."""

    def library_version(self) -> str:
        """Version of the library; MissingDependencyError or EngineUnavailableError where it does not work."""

    def obstacle(self, engine: EngineEntry) -> str | None:
        """Why this processor must not run `engine`; None: it may. Does not import the library."""


@dataclass(frozen=True, kw_only=True)
class BackendSpec:
    """What is known of a backend before its library is imported."""

    name: str
    """As EngineEntry.requires spells it, and the module of its library."""
    device: str
    """The kind of device it runs on: `cpu` or `cuda`."""
    module: str
    """A BackendModule."""
    dialects: tuple[Dialect, ...] = ()
    """What it runs, the best first."""


BACKENDS = (
    BackendSpec(
        name="onnxruntime",
        device="cpu",
        module="mexma_runtime.backends.cpu.onnxruntime",
        dialects=(Dialect.FUSED, Dialect.PORTABLE),
    ),
    BackendSpec(
        name="openvino", device="cpu", module="mexma_runtime.backends.cpu.openvino", dialects=(Dialect.PORTABLE,)
    ),
    BackendSpec(
        name="onnxruntime",
        device="cuda",
        module="mexma_runtime.backends.gpu.onnxruntime",
        dialects=(Dialect.PACKED, Dialect.FUSED),
    ),
    BackendSpec(
        name="tensorrt", device="cuda", module="mexma_runtime.backends.gpu.tensorrt", dialects=(Dialect.PORTABLE,)
    ),
)


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
