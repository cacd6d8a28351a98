"""What every backend checks of an engine and a library before it opens anything, and how it is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mexma_runtime.backends.padding import INPUT_NAMES
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.errors import BundleError, DeviceMemoryError, EngineUnavailableError
from mexma_runtime.hardware import read_limit_left, sums_int8_exactly
from mexma_runtime.types import Precision

WHOLE_BITS = 8
"""Of weights; sums saturate with these, and not with fewer."""

LEAST_MEMORY_BYTES = 256 << 20
"""Under a limit on the process: what a library's code takes to be loaded, and then threads, their heaps and a batch.

The libraries abort the process where they get none. all-MiniLM-L6-v2 in fp32 and int8, on onnxruntime and OpenVINO,
was run under limits from 200 to 1,000 MB, with two threads: with more left than this, none did.
"""


def require_memory_left() -> None:
    """DeviceMemoryError where a limit of the process leaves less than LEAST_MEMORY_BYTES."""
    left = read_limit_left()
    if left is not None and left < LEAST_MEMORY_BYTES:
        raise DeviceMemoryError(
            f"this process may take only {left / 1e6:.0f} MB of memory more, and an encoder needs at least "
            f"{LEAST_MEMORY_BYTES / 1e6:.0f} MB: raise its limit on addresses or data (`ulimit -v`, `ulimit -d`), or "
            "limit memory with a cgroup instead"
        )


def require_version(engine: EngineEntry, library: str, version: str, *, extra: str) -> None:
    """EngineUnavailableError where `version` of `library` is too old for `engine`, as far as that names it."""
    least = engine.requires.get(library, "0")
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
    """Whether sums of this engine's int8 products may saturate: never with weights of 7 bits, never around fp16."""
    if engine.precision is not Precision.INT8 or engine.is_quantized_around_fp16:
        return False
    is_narrow = engine.quantization is not None and engine.quantization.weight_bits < WHOLE_BITS
    return not is_narrow and not sums_int8_exactly(instruction_sets)


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
