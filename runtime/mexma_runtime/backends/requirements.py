"""What every backend checks of an engine, a library and the caller's wishes before it opens anything."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from mexma_runtime.backends.base import BackendOptions
from mexma_runtime.backends.padding import INPUT_NAMES
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.errors import BundleError, EngineUnavailableError, UsageError
from mexma_runtime.hardware import Hardware, sums_int8_exactly
from mexma_runtime.types import Precision

WHOLE_BITS = 8
"""Of weights; sums saturate with these, and not with fewer."""


def require_version(engine: EngineEntry, library: str, version: str, *, extra: str) -> None:
    """EngineUnavailableError unless `engine` is for `library` and its `version` is late enough."""
    least = engine.requires.get(library)
    if least is None:
        raise EngineUnavailableError(f"engine {engine.name} is for {', '.join(engine.requires)}, not for {library}")
    if version_key(version) < version_key(least):
        raise EngineUnavailableError(
            f"engine {engine.name} needs {library} {least} or later, {version} is installed: "
            f"pip install --upgrade 'mexma-runtime[{extra}]'"
        )


def require_names(
    path: Path,
    engine: EngineEntry,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    feedable: Collection[str] = INPUT_NAMES,
) -> None:
    """BundleError unless the graph in `path` takes and gives what `engine` says, and we can feed it."""
    if (list(inputs), list(outputs)) != (engine.inputs, [engine.output]) or not set(inputs) <= set(feedable):
        raise BundleError(
            path, f"expected inputs {engine.inputs} and output {engine.output}, the graph has {inputs} and {outputs}"
        )


def refuse_device_options(options: BackendOptions) -> None:
    """UsageError for what only a GPU has."""
    for name in ("graphs", "attention", "memory_limit", "tuning"):
        if (value := getattr(options, name)) is not None:
            raise UsageError(f"{name}={value} is for a GPU, and device={options.device!r} was asked for: leave it out")


def n_threads_for(options: BackendOptions, hardware: Hardware) -> int:
    """The threads asked for, or as many as the process has cores."""
    n_threads = hardware.n_usable_cores if options.n_threads is None else options.n_threads
    if n_threads < 1:
        raise UsageError(f"n_threads: expected 1 or more, got {n_threads}")
    return n_threads


def saturates(engine: EngineEntry, instruction_sets: Iterable[str]) -> bool:
    """Whether sums of this engine's products of uint8 and int8 may saturate: never with weights of 7 bits."""
    is_narrow = engine.quantization is not None and engine.quantization.weight_bits < WHOLE_BITS
    return engine.precision is Precision.INT8 and not is_narrow and not sums_int8_exactly(instruction_sets)


def version_key(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare: 1.31.1 and 1.31.1+cpu are (1, 31, 1)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()
