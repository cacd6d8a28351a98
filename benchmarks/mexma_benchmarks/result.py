"""What a run measured, raw: every sample, beside the machine it was measured on.

History of the schema:
  1  first release
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from mexma_benchmarks.environment import Environment
from mexma_export.parity import ParityFigures

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One workload; its subjects took turns within one run, so sample i of each is of the same round."""

    workload: str
    n_sentences: int
    n_tokens: int
    """Special ones included, padding not; 0 for a cold start, whose rate means nothing."""
    baseline: str
    """The subject that the others are held against."""
    samples_ms: dict[str, list[float]] = field(default_factory=dict)
    """Subject -> ms of each round."""


@dataclass(kw_only=True)
class ModelResult:
    """Everything measured of one checkpoint; it grows, and what is empty was not reached."""

    name: str
    model_id: str
    weights_sha256: str
    n_layers: int
    hidden_size: int
    pooling: str
    reference: str
    """What PyTorch's rows were measured with."""
    timings: list[Timing] = field(default_factory=list)
    peak_rss_bytes: dict[str, list[int]] = field(default_factory=dict)
    """Subject -> peak resident memory of each cold start, pages of mapped files included."""
    fidelity_corpus: str = ""
    fidelity: dict[str, ParityFigures] = field(default_factory=dict)
    """Engine -> its vectors against PyTorch's."""


@dataclass(kw_only=True)
class Result:
    """One run; it grows while it is measured."""

    environment: Environment
    n_threads: int
    """Of PyTorch and of every engine."""
    schema: int = SCHEMA
    is_complete: bool = False
    models: list[ModelResult] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write it as JSON; the file is whole at any time."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
