"""What was measured on one GPU for one engine: until how many tokens a captured graph is faster. Kept in local/."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from mexma_runtime.bundle.manifest import LOCAL, EngineEntry
from mexma_runtime.bundle.strict_json import read_document
from mexma_runtime.bundle.whole_files import require_writable, write_whole
from mexma_runtime.errors import file_errors

SCHEMA = 1
FILE = Path(LOCAL) / "tuning.json"
"""In the bundle's folder; outside its hashes, and rebuilt at will."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Times of one bucket, by its graph and without."""

    n_tokens: int
    """That it has room for."""
    graph_ms: list[float]
    """Each run of its graph, full."""
    direct_ms: list[float]
    """Each run without a graph, in turns with those, of the fewest tokens that this bucket would be taken for."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How an engine is run on a GPU."""

    graph_up_to_tokens: int = 2048
    """Batches of up to so many tokens run in captured graphs. The default: without one, a sentence took 3.4 ms on an
    H200, nearly all of it the host's launches, and in that time the GPU computes 2,500 tokens (docs/gpu.md)."""
    max_batch_tokens: int = 65536
    samples: list[Sample] = dataclasses.field(default_factory=list)
    """What the choice was made by; none: the defaults."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    gpu: str
    engine: str
    file: str
    """The engine's graph; its name has its hash."""
    tuning: Tuning


@dataclass(frozen=True, kw_only=True)
class _File:
    schema: int
    entries: list[_Entry]


def read_tuning(folder: Path, gpu: str, engine: EngineEntry) -> Tuning:
    """What was measured for `engine` on a GPU of this description, or the defaults.

    BundleError where the file cannot be read: nothing is guessed in its place.
    """
    for entry in _read(folder / FILE).entries:
        if (entry.gpu, entry.engine, entry.file) == (gpu, engine.name, engine.file):
            return entry.tuning
    return Tuning()


def writable_file(folder: Path) -> Path:
    """Where what is measured will be kept; FileError where it cannot be, to be told before anything is measured."""
    path = folder / FILE
    with file_errors(path, "cannot be written"):
        path.parent.mkdir(exist_ok=True)
    require_writable(path)
    return path


def write_tuning(folder: Path, gpu: str, engine: EngineEntry, tuning: Tuning) -> Path:
    """Keep `tuning` for `engine` on GPUs of this description; others' stay. The file is replaced by one rename."""
    path = writable_file(folder)
    ours = _Entry(gpu=gpu, engine=engine.name, file=engine.file, tuning=tuning)
    others = [entry for entry in _read(path).entries if (entry.gpu, entry.engine) != (gpu, engine.name)]
    document = dataclasses.asdict(_File(schema=SCHEMA, entries=[*others, ours]))
    write_whole(path, json.dumps(document, indent=1).encode())
    return path


def choose_limit(samples: Sequence[Sample]) -> int:
    """The tokens up to which every bucket's graph is at least as fast as running without; 0 where none is.

    A bucket's graph computes all of its room, so it is held against the fewest tokens that it would be taken for.
    """
    limit = 0
    for sample in sorted(samples, key=lambda sample: sample.n_tokens):
        if median(sample.graph_ms) > median(sample.direct_ms):
            break
        limit = sample.n_tokens
    return limit


def _read(path: Path) -> _File:
    if not path.exists():
        return _File(schema=SCHEMA, entries=[])
    read = read_document(_File, path, schema=SCHEMA, advice="remove it, and run `mexma doctor --tune` again")
    assert isinstance(read, _File)
    return read
