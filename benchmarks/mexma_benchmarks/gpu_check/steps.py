"""The steps one after another: what fails is a row, what comes too late is one too, and all is kept as it comes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from mexma_benchmarks.gpu_check.lineup import Lineup, Sizes
from mexma_benchmarks.result.checks import Record, failed, not_measured
from mexma_benchmarks.result.result import ModelResult, Result
from mexma_benchmarks.run.bench import CALIBRATION_FILE, empty_result
from mexma_benchmarks.run.prepared import Prepared, prepare_model
from mexma_benchmarks.run.sizes import RunSizes
from mexma_benchmarks.run.subjects import Subject
from mexma_benchmarks.run.suite import Run, measure_model
from mexma_export.checkpoint.sources import Source, resolve_source
from mexma_runtime import Encoder
from mexma_runtime.terminal import Progress, note

RESULT_FILE = "result.json"
LIMIT_S = 90.0
"""No subject takes so long to start, or for one answer, but one that never comes to an end."""


@dataclass(kw_only=True)
class Setup:
    """What the steps share."""

    device: str
    source_name: str
    out: Path
    sizes: Sizes
    lineup: Lineup
    result: Result
    report: Progress
    budget_s: float
    """Seconds after which nothing is begun."""
    clock: Callable[[], float] = time.monotonic
    start_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.start_s = self.clock()

    @property
    def elapsed_s(self) -> float:
        """Since the first step."""
        return self.clock() - self.start_s

    @property
    def is_cuda(self) -> bool:
        """Whether there is a GPU to be measured."""
        return self.device.partition(":")[0] == "cuda"

    @cached_property
    def prepared(self) -> Prepared:
        """The checkpoint, a stand-in being written where it is not there yet, and its bundle."""
        return self.prepare(resolve_source(self.source_name), self.bundle_folder.name)

    @property
    def bundle_folder(self) -> Path:
        """Where its bundle lies."""
        return self.out / "bundles" / re.sub(r"[^\w.]+", "-", self.source_name)

    @property
    def model(self) -> ModelResult:
        """What was measured of it, by several steps."""
        return self.model_of(self.prepared)

    def open_encoder(self) -> Encoder:
        """Ours, in this process."""
        return Encoder.from_bundle(self.prepared.bundle, engine=self.lineup.ours.options["engine"], device=self.device)

    def prepare(self, source: Source, folder: str) -> Prepared:
        """The bundle of `source` in `folder`, exported where it is not there."""
        return prepare_model(
            source,
            pooling=None,
            bundle=self.out / "bundles" / folder,
            int8=False,
            n_threads=self.result.n_threads,
            device=self.device,
            report=self.report,
        )

    def model_of(self, prepared: Prepared) -> ModelResult:
        """What was measured of a checkpoint so far: its place in the result."""
        models = self.result.models
        if prepared.name not in [model.name for model in models]:
            models.append(empty_result(prepared, baseline=self.lineup.baseline.name))
        return next(model for model in models if model.name == prepared.name)

    def measure(self, prepared: Prepared, subjects: Sequence[Subject], model: ModelResult, sizes: RunSizes) -> None:
        """Let the suite measure subjects beside the baseline, as far as there is time."""
        run = Run(
            sizes=sizes,
            corpus=None,
            cache=self.out,
            calibration=self.out / CALIBRATION_FILE,
            save=self.save,
            report=self.report,
            limit_s=LIMIT_S,
            is_over=lambda: self.elapsed_s > self.budget_s,
        )
        measure_model(prepared, [self.lineup.baseline, *subjects], model, run)

    def save(self) -> None:
        """Keep what was found so far."""
        self.result.save(self.out / RESULT_FILE)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing to measure."""

    name: str
    measure: Callable[[Setup, Record], None]
    needs_cuda: bool = False


def run_steps(steps: Sequence[Step], setup: Setup) -> None:
    """Run all `steps`, saving after each; one that would begin too late falls short."""
    for step in steps:
        began_s = setup.elapsed_s
        record = Record(step=step.name)
        setup.result.records.append(record)
        if step.needs_cuda and not setup.is_cuda:
            record.checks.append(not_measured(step.name, "it needs CUDA", is_excused=True))
        elif began_s > setup.budget_s:
            record.checks.append(not_measured(step.name, "out of time", is_excused=False))
        else:
            note(f"{began_s:4.0f} s  {step.name}")
            try:
                step.measure(setup, record)
            except Exception as error:  # noqa: BLE001 - whatever a step raises is its row, and the others follow
                record.checks.append(failed(step.name, error))
            finally:  # an interrupt ends the run, and keeps what it had
                record.seconds = setup.elapsed_s - began_s
                setup.save()
    setup.result.is_complete = True
    setup.save()
    note(f"{setup.elapsed_s:4.0f} s  done")
