"""Choosing the engine of a bundle and the backend that runs it, together: what is best depends on both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

from mexma_runtime.backends.options import resolve
from mexma_runtime.backends.support import BACKENDS, BackendSpec, module_of, serving
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.errors import EngineUnavailableError, MexmaError, MissingDependencyError, UsageError
from mexma_runtime.hardware import VNNI, detect_hardware, onednn_instruction_sets
from mexma_runtime.types import Dialect, Precision

DEFAULT_RECIPES = {"openvino": ("precise", "fast"), "onnxruntime": ("fast", "precise")}
"""Where a bundle has several int8 recipes and none is asked for: the order of each backend; others follow by name."""


def choose(
    bundle: Bundle,
    *,
    device: str | Sequence[str],
    backend: str | None = None,
    engine: str | None = None,
    precision: str | None = None,
    dialect: str | None = None,
    recipe: str | None = None,
) -> tuple[BackendSpec, EngineEntry]:
    """The engine of `bundle` that fits what is asked for, and the backend to run it; None leaves the choice to us.

    No precision: int8 for a recipe, else the only one there is, or fp32; on a GPU fp16. Of what is left, the first by
    `_preference` whose library is installed and that this processor may run; where there is none, the first of all,
    for `open_backend` to say what is wrong.

    Raises UsageError, and EngineUnavailableError that lists what the bundle has.
    """
    specs = _serving_all(devices_of(device), backend)
    wanted_precision = resolve(Precision, "precision", precision)
    wanted_dialect = resolve(Dialect, "dialect", dialect)
    pairs = [
        (spec, entry)
        for spec in specs
        for entry in bundle.manifest.engines
        if spec.runs(entry)
        and (entry.dialect in spec.dialects or entry.dialect == wanted_dialect or entry.name == engine)
    ]
    if engine is not None:
        asked = {"precision": wanted_precision, "dialect": wanted_dialect, "recipe": recipe}
        _check_engine(bundle, engine, {name: value for name, value in asked.items() if value is not None})
        fitting = [pair for pair in pairs if pair[1].name == engine]
    else:
        if wanted_precision is None and recipe is not None:
            wanted_precision = Precision.INT8
        elif wanted_precision is None:
            there = {entry.precision for _, entry in pairs}
            best = Precision.FP16 if specs[0].device == "cuda" and Precision.FP16 in there else Precision.FP32
            wanted_precision = there.pop() if len(there) == 1 else best
        fitting = [
            (spec, entry)
            for spec, entry in pairs
            if entry.precision == wanted_precision
            and wanted_dialect in (None, entry.dialect)
            and recipe in (None, entry.recipe)
        ]
    if not fitting:
        wanted = f"engine {engine}" if engine else f"{wanted_precision} engine"
        wanted += f" in dialect {wanted_dialect}" if wanted_dialect else ""
        wanted += f" of recipe {recipe}" if recipe else ""
        raise EngineUnavailableError(
            f"{bundle.folder}: no {wanted} for backend {' or '.join(spec.name for spec in specs)} on "
            f"{specs[0].device}; the bundle has {_listed(bundle)}: ask for one of these, or export the missing one "
            "into the same bundle"
        )
    fitting.sort(key=_preference())
    return next((pair for pair in fitting if _works(*pair)), fitting[0])


def require_device(device: str) -> list[BackendSpec]:
    """The backends for `device`. Raises as `choose` for what is no device, and what keeps a GPU from being used."""
    specs = serving(device, None)
    if specs[0].device != "cpu":
        module_of(specs[0]).library_version()
    return specs


def runnable_engines(bundle: Bundle, device: str) -> list[tuple[str, EngineEntry]]:
    """Each backend that works on `device`, by name, with each engine that it runs here.

    fp32 first; of one precision, the pair that `choose` prefers. Raises as `choose` for what is no device, and what
    keeps the first backend that is installed from a GPU where none works.
    """
    pairs = [
        (spec, engine)
        for spec in _working(device)
        for engine in bundle.manifest.engines
        if engine.dialect in spec.dialects and spec.runs(engine) and _works(spec, engine)
    ]
    return [(spec.name, engine) for spec, engine in sorted(pairs, key=_preference())]


def _working(device: str) -> list[BackendSpec]:
    specs = serving(device, None)
    if specs[0].device == "cpu":
        return specs
    working, problems = [], list[MexmaError]()
    for spec in sorted(specs, key=lambda spec: not _is_installed(spec)):
        try:
            module_of(spec).library_version()
        except (EngineUnavailableError, MissingDependencyError) as error:
            problems.append(error)
        else:
            working.append(spec)
    if not working:
        raise problems[0]
    return working


def runners(engine: EngineEntry) -> list[str]:
    """The backends of this version that `engine` is for, with their devices."""
    return [f"{spec.name} on {spec.device}" for spec in BACKENDS if spec.runs(engine)]


def devices_of(device: str | Sequence[str]) -> tuple[str, ...]:
    """One or several, as a tuple."""
    return (device,) if isinstance(device, str) else tuple(device)


def _serving_all(devices: Sequence[str], backend: str | None) -> list[BackendSpec]:
    """The backends for all of `devices`, which are of one kind and differ."""
    if not devices or len(set(devices)) != len(devices):
        raise UsageError(f"device: expected one or more different ones, got {list(devices)}")
    found = [serving(device, backend) for device in devices]
    if len(devices) > 1 and {spec.device for specs in found for spec in specs} != {"cuda"}:
        raise UsageError(f"device: several are for GPUs, 'cuda:0', 'cuda:1', ..., got {list(devices)}")
    return found[0]


def _check_engine(bundle: Bundle, name: str, asked: dict[str, str]) -> None:
    """Raise unless the bundle has the engine `name` and it is what else was asked for."""
    entry = next((entry for entry in bundle.manifest.engines if entry.name == name), None)
    if entry is None:
        raise EngineUnavailableError(f"{bundle.folder}: no engine {name!r}; the bundle has {_listed(bundle)}")
    for what, value in asked.items():
        if getattr(entry, what) != value:
            raise UsageError(f"{what} {value} was asked for with engine {name}, whose {what} is {getattr(entry, what)}")


def _listed(bundle: Bundle) -> str:
    engines = bundle.manifest.engines
    return ", ".join(f"{e.name} (for {' or '.join(runners(e)) or 'no backend'})" for e in engines) or "no engines"


def _preference() -> Callable[[tuple[BackendSpec, EngineEntry]], tuple[object, ...]]:
    """What to sort by: the precision, then from the best: backend, its dialect, its recipe, the activations."""
    has_vnni = not VNNI.isdisjoint(onednn_instruction_sets(detect_hardware().instruction_sets))

    def key(pair: tuple[BackendSpec, EngineEntry]) -> tuple[object, ...]:
        spec, engine = pair
        is_int8 = engine.precision is Precision.INT8
        backends = ("openvino", "onnxruntime") if is_int8 and has_vnni else ("onnxruntime", "openvino")
        return (
            _place(list(Precision), engine.precision),
            _place(backends, spec.name),
            _place(spec.dialects, engine.dialect),
            _place(DEFAULT_RECIPES.get(spec.name, ()), engine.recipe),
            engine.recipe or "",
            engine.activation != "uint8",
            engine.name,
        )

    return key


def _place(order: Sequence[str], value: str | None) -> int:
    return order.index(value) if value in order else len(order)


def _is_installed(spec: BackendSpec) -> bool:
    return find_spec(spec.library or spec.name) is not None


def _works(spec: BackendSpec, engine: EngineEntry) -> bool:
    """Whether the library is installed, which is not to say that it works, and may run `engine` on this processor."""
    return _is_installed(spec) and module_of(spec).obstacle(engine) is None
