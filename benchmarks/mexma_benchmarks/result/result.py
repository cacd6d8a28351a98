"""What a run measured, raw: every sample, beside the machine it was measured on. It grows while it is measured.

History of the schema (history.py brings what is older up to date):
  1  fp32 engines against PyTorch only; not read any more. Of gpu-check, a format of its own: steps with checks
  2  subjects of all kinds, each in its own process; workloads as data; open-loop load; fidelity of every subject
  3  several calls in a turn; the records of gpu-check's steps in the same file
  4  clients in a closed loop, and one beside a caller that never stops
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mexma_benchmarks.result.checks import Check, Record
from mexma_benchmarks.result.environment import Environment
from mexma_benchmarks.result.history import SCHEMA, brought_up_to_date
from mexma_export.parity.figures import InvarianceFigures, ParityFigures
from mexma_runtime.bundle.strict_json import MismatchError, loads, parse
from mexma_runtime.bundle.whole_files import write_whole
from mexma_runtime.errors import UsageError, file_errors

MAX_PROBLEMS = 10
"""Wrong fields that an error lists."""

Role = Literal["engine", "baseline", "peer"]
Status = Literal["measured", "unavailable", "failed"]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What every subject of a timing was given."""

    kind: Literal["ids", "texts", "cold start"]
    """Token ids in (the engine only), texts in (tokenization included), or process start to first vector."""
    name: str
    """`32 x 128 tokens`, `256 texts of drawn lengths`."""
    n_sentences: int
    n_tokens: int
    """Special ones included, padding not."""
    batch: int | None = None
    length: int | None = None
    """Sentences and tokens of each, where all have the same number."""


@dataclass(kw_only=True)
class Timing:
    """One workload; its subjects took turns within one run, so sample i of each is of the same round."""

    workload: Workload
    heat: int
    """Which group of subjects: as many as fit into memory at once. The baseline is in every one."""
    samples_ms: dict[str, list[float]] = field(default_factory=dict)
    """Subject -> ms of each round; of a turn with several calls, their median."""
    calls_ms: dict[str, list[list[float]]] = field(default_factory=dict)
    """Subject -> of each round the ms of each call, where a turn has several."""
    stages_ms: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """Subject -> of each round the ms in `tokenize`, `copy`, `compute`, where the library tells them apart."""
    not_offered: dict[str, str] = field(default_factory=dict)
    """Subject -> why it has no such interface."""


@dataclass(kw_only=True)
class LoadRun:
    """One subject under Poisson arrivals of single texts at one rate."""

    subject: str
    rate_per_s: float
    """Asked for; the arrivals' seed fixes what came."""
    duration_s: float
    seed: int
    n_arrivals: int
    """Requests that were scheduled; with fewer latencies the subject fell ever further behind and was given up."""
    latencies_ms: list[float]
    """Of each request, from its scheduled arrival to its vector."""


@dataclass(kw_only=True)
class ClientRun:
    """One subject and clients that ask again as soon as they have their answer."""

    subject: str
    clients: Literal["threads", "coroutines"]
    n_clients: int
    texts_a_call: int
    seconds: float
    """From the first call's begin to the last one's end."""
    latencies_ms: list[float]
    """Of each call, in the order in which they ended."""


@dataclass(kw_only=True)
class BesideRun:
    """Single texts at fixed times, beside a thread that embeds many over and over, of one subject."""

    subject: str
    n_texts: int
    """Of each call of that thread."""
    every_ms: float
    latencies_ms: list[float]
    """Of each single text, from its scheduled time to its vector."""
    alone_ms: list[float]
    """Of single texts when the subject had nothing else to do."""
    batch_ms: list[float]
    """Of the fullest batch then; empty where the subject does not say how large it is."""


@dataclass(kw_only=True)
class Fidelity:
    """A subject's vectors against transformers' own model in fp32."""

    figures: ParityFigures
    invariance: InvarianceFigures | None
    by_length: dict[str, ParityFigures] = field(default_factory=dict)
    by_language: dict[str, ParityFigures] = field(default_factory=dict)
    uncertified: str | None = None
    """Why these figures certify nothing, where they don't."""
    calibration: str | None = None
    """What text it was calibrated on, and how much of that was judged; None: it was not calibrated."""


@dataclass(kw_only=True)
class SubjectResult:
    """One subject, and what is known of it beside its times."""

    name: str
    role: Role
    adapter: str
    options: dict[str, str | int | float | bool | None]
    status: Status = "measured"
    reason: str | None = None
    """Why it has no figures, or no more of them."""
    versions: dict[str, str] = field(default_factory=dict)
    provider: str = ""
    batching: str = ""
    prepare_s: float | None = None
    """Seconds to make what it runs from the checkpoint; None: it runs the checkpoint as it is, or was made before."""
    disk_bytes: int | None = None
    """Size of what it needs to run, tokenizer included."""
    peak_rss_bytes: list[int] = field(default_factory=list)
    """Of each cold start, after its first vector, pages of mapped files included."""
    peak_rss_after_bytes: int | None = None
    """The same after all workloads of one process."""
    device_bytes: int | None = None
    """GPU memory held after all workloads, where there is a GPU."""
    fidelity: Fidelity | None = None


@dataclass(kw_only=True)
class ModelResult:
    """Everything measured of one checkpoint; what is empty was not reached."""

    name: str
    model_id: str
    weights_sha256: str
    n_layers: int
    hidden_size: int
    pooling: str
    is_standin: bool
    """Random weights: its speed is real, its fidelity says little."""
    baseline: str
    """The subject that the others are held against."""
    subjects: list[SubjectResult] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    load_runs: list[LoadRun] = field(default_factory=list)
    client_runs: list[ClientRun] = field(default_factory=list)
    beside_runs: list[BesideRun] = field(default_factory=list)
    p99_bound_ms: float | None = None
    """Bound under which the highest rate was looked for."""
    reference: str = ""
    """What the vectors were held against."""
    fidelity_corpus: str = ""

    @property
    def timed(self) -> list[str]:
        """The subjects that have samples of a workload, each once."""
        return list(dict.fromkeys(name for timing in self.timings for name in timing.samples_ms))

    def subject(self, name: str) -> SubjectResult:
        """The subject of that name."""
        return next(subject for subject in self.subjects if subject.name == name)


@dataclass(kw_only=True)
class Result:
    """One run."""

    environment: Environment
    n_threads: int
    """Of every subject."""
    settings: dict[str, str | int | float | bool | None]
    """How much was asked for."""
    schema: int = SCHEMA
    is_complete: bool = False
    models: list[ModelResult] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    """Of gpu-check's steps."""

    @property
    def checks(self) -> list[Check]:
        """The checks of all steps."""
        return [check for record in self.records for check in record.checks]

    def hold_against(self, subject: str) -> None:
        """Make `subject` the baseline of every model that it was timed with; the others keep theirs.

        Raises:
            UsageError: it was timed with none.
        """
        if not any(subject in model.timed for model in self.models):
            known = ", ".join(
                repr(name) for name in dict.fromkeys(name for model in self.models for name in model.timed)
            )
            raise UsageError(f"no subject called {subject!r} was timed: there are {known or 'none'}")
        for model in self.models:
            if subject in model.timed:
                model.baseline = subject

    def save(self, path: Path) -> None:
        """Write it as JSON; the file is whole at any time."""
        with file_errors(path.parent, "cannot be made a folder"):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(dataclasses.asdict(self)).encode() + b"\n")

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read what `save` wrote, and what earlier versions wrote as far as history.py knows it.

        Raises:
            FileError: the file cannot be read.
            UsageError: it is of a schema that is not known here, or does not fit it.
        """
        with file_errors(path, "cannot be read"):
            text = path.read_bytes()
        try:
            document = loads(text.decode())
            schema = document.get("schema")
        except (ValueError, AttributeError) as error:
            raise UsageError(f"{path}: not a result of `mexma bench run`: {error}") from None
        try:
            current = brought_up_to_date(document)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise UsageError(f"{path}: does not fit schema {schema}: {error!r}") from None
        if current is None:
            raise UsageError(f"{path}: schema {schema}, this version reads {SCHEMA}: run the benchmark again")
        try:
            result: Result = parse(Result, current)
        except MismatchError as error:
            told = "".join(f"\n  - {problem}" for problem in error.problems[:MAX_PROBLEMS])
            raise UsageError(f"{path}: does not fit schema {schema}:{told}") from None
        return result
