"""What was measured on one GPU for one engine: where captured graphs, and where either attention kernel, are faster.

Kept in local/. History of the schema (a reader knows every version up to its own):
  1  captured graphs
  2  attention kernels: Tuning.flash_above_mean_tokens, attention_samples
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from mexma_runtime.bundle.manifest import LOCAL, EngineEntry
from mexma_runtime.bundle.strict_json import Check, read_document
from mexma_runtime.bundle.whole_files import require_writable, write_whole
from mexma_runtime.errors import file_errors

SCHEMA = 2
FILE = Path(LOCAL) / "tuning.json"
"""In the bundle's folder; outside its hashes, and rebuilt at will."""


_MOST = 1 << 31
_NOT_NEGATIVE = Check(expected="0 tokens or more", holds=range(_MOST).__contains__)
_POSITIVE = Check(expected="1 token or more", holds=range(1, _MOST).__contains__)


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
class AttentionSample:
    """Times of one batch by each attention kernel, in turns."""

    mean_tokens: int
    """Of its sentences."""
    efficient_ms: list[float]
    flash_ms: list[float]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How an engine is run on a GPU."""

    graph_up_to_tokens: Annotated[int, _NOT_NEGATIVE] = 512
    """Batches of up to so many tokens run in captured graphs. The default was measured on an H200 (docs/gpu.md)."""
    max_batch_tokens: Annotated[int, _POSITIVE] = 65536
    flash_above_mean_tokens: Annotated[int, _NOT_NEGATIVE] = 64
    """With attention='auto': batches whose sentences have more tokens than this, on average, run in flash.

    The default is by reasoning. A sentence of up to 64 tokens is one tile of either kernel, and flash's (128 x 128) has
    four times the cells of efficient's (64 x 64). Of a longer one it has at most 1.8 times as many, and a cell takes it
    little more than half the time (docs/lab/gpu.md). Measured on an H200 in thousands of tokens/s, efficient and flash:
    633 and 519 at a mean of 11.6 tokens, 734 and 759 at 128, 605 and 699 at 512.
    """
    samples: list[Sample] = dataclasses.field(default_factory=list)
    """What `graph_up_to_tokens` was chosen by; none: the default."""
    attention_samples: list[AttentionSample] = dataclasses.field(default_factory=list)
    """What `flash_above_mean_tokens` was chosen by; none: the default."""


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


def choose_crossover(samples: Sequence[AttentionSample]) -> int:
    """The mean tokens up to which efficient is to run, and above which flash: the one that loses least.

    One of those measured, or 0; the default without samples. What a crossover loses is the sum, over the samples, of
    how many times as long as the faster kernel its own takes, so that noise where both are about even decides nothing.
    Of equal ones the largest.
    """
    if not samples:
        return Tuning.flash_above_mean_tokens

    def loss(crossover: int) -> float:
        total = 0.0
        for sample in samples:
            efficient_ms, flash_ms = median(sample.efficient_ms), median(sample.flash_ms)
            taken_ms = flash_ms if sample.mean_tokens > crossover else efficient_ms
            total += taken_ms / min(efficient_ms, flash_ms)
        return total

    return min(sorted([0, *(sample.mean_tokens for sample in samples)], reverse=True), key=loss)


def _read(path: Path) -> _File:
    if not path.exists():
        return _File(schema=SCHEMA, entries=[])
    advice = "remove it, and run `mexma doctor --tune` again"
    read = read_document(_File, path, schema=SCHEMA, advice=advice, upgrade=_upgraded)
    assert isinstance(read, _File)
    return read


def _upgraded(data: dict[str, Any]) -> dict[str, Any]:
    """What a file of schema 1 is in SCHEMA; what is no such file is left as it is, to be refused."""
    try:
        entries = [{**entry, "tuning": {**_NO_ATTENTION, **entry["tuning"]}} for entry in data["entries"]]
    except (KeyError, TypeError):
        return data
    return {**data, "entries": entries}


_NO_ATTENTION = {"flash_above_mean_tokens": Tuning.flash_above_mean_tokens, "attention_samples": []}
