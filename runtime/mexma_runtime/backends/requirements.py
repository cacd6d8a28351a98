"""What every backend checks of an engine and a library before it opens anything, and how it is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mexma_runtime.backends.padding import INPUT_NAMES
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.errors import BundleError, EngineUnavailableError
from mexma_runtime.hardware import sums_int8_exactly
from mexma_runtime.types import Precision

WHOLE_BITS = 8
"""Of weights; sums saturate with these, and not with fewer."""


def require_version(engine: EngineEntry, library: str, version: str, *, extra: str) -> None:
    """EngineUnavailableError where `version` of `library` is too old for `engine`."""
    least = engine.requires[library]
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


def saturates(engine: EngineEntry, instruction_sets: Iterable[str]) -> bool:
    """Whether sums of this engine's products of uint8 and int8 may saturate: never with weights of 7 bits."""
    is_narrow = engine.quantization is not None and engine.quantization.weight_bits < WHOLE_BITS
    return engine.precision is Precision.INT8 and not is_narrow and not sums_int8_exactly(instruction_sets)


def version_key(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare: 1.31.1 and 1.31.1+cpu are (1, 31, 1)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


@contextmanager
def unless_set(variable: str, value: str) -> Iterator[None]:
    """Give an environment variable `value` within the block, unless it is set: other libraries do not find it."""
    if variable in os.environ:
        yield
        return
    os.environ[variable] = value
    try:
        yield
    finally:
        del os.environ[variable]
