"""The steps one after another: what fails is a row, what comes too late is one too, and all is kept as it comes."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mexma_benchmarks.result.checks import Check, failed, not_measured
from mexma_benchmarks.gpu_check.setup import Setup
from mexma_benchmarks.result.environment import Environment
from mexma_runtime.terminal import note

SCHEMA = 1
RESULT_FILE = "result.json"


@dataclass(kw_only=True)
class Record:
    """What one step found; it grows while the step runs, so that a failure leaves what came before it."""

    step: str
    checks: list[Check] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)
    """Raw, ready for JSON; names carry the unit."""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing to measure."""

    name: str
    measure: Callable[[Setup, Record], None]
    needs_cuda: bool = False


@dataclass(kw_only=True)
class Result:
    """All that a run found."""

    environment: Environment
    device: str
    model: str
    is_quick: bool
    records: list[Record] = field(default_factory=list)

    @property
    def checks(self) -> list[Check]:
        """The checks of all steps."""
        return [check for record in self.records for check in record.checks]

    def save(self, folder: Path) -> Path:
        """Write all of it as JSON; the file is replaced by one rename."""
        document = {"schema": SCHEMA} | dataclasses.asdict(self)
        for record, written in zip(self.records, document["records"], strict=True):
            for check, row in zip(record.checks, written["checks"], strict=True):
                row["verdict"] = check.verdict
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{RESULT_FILE}.partial"
        partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        return partial.replace(folder / RESULT_FILE)


def run_steps(
    steps: Sequence[Step], setup: Setup, result: Result, *, budget_s: float, clock: Callable[[], float] = time.monotonic
) -> None:
    """Run all `steps`, saving `result` after each; one that would start after `budget_s` falls short."""
    start_s = clock()
    for step in steps:
        began_s = clock()
        elapsed_s = began_s - start_s
        record = Record(step=step.name)
        result.records.append(record)
        if step.needs_cuda and not setup.is_cuda:
            record.checks.append(not_measured(step.name, "it needs CUDA", is_excused=True))
        elif elapsed_s > budget_s:
            record.checks.append(not_measured(step.name, "out of time", is_excused=False))
        else:
            note(f"{elapsed_s:4.0f} s  {step.name}")
            try:
                step.measure(setup, record)
            except Exception as error:  # noqa: BLE001 - whatever a step raises is its row, and the others follow
                record.checks.append(failed(step.name, error))
        record.seconds = clock() - began_s
        result.save(setup.out)
    note(f"{clock() - start_s:4.0f} s  done")
