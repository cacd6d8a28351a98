"""A whole run: each checkpoint asked for, with everything that can run it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mexma_benchmarks.result.result import ModelResult, Result
from mexma_benchmarks.run.fidelity import calibration_texts
from mexma_benchmarks.run.models import MINILM, minilm_source
from mexma_benchmarks.run.prepared import Prepared, prepare_model
from mexma_benchmarks.run.sizes import RunSizes
from mexma_benchmarks.run.subjects import (
    EVERYTHING,
    Subject,
    baseline_subjects,
    engine_subjects,
    flash_subjects,
    with_runtime,
)
from mexma_benchmarks.run.suite import Run, measure_model
from mexma_export.checkpoint.sources import Source, resolve_source
from mexma_export.corpus.corpus import Corpus
from mexma_runtime.terminal import Progress
from mexma_runtime.types import Pooling

CALIBRATION_FILE = "calibration.txt"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What was asked for."""

    sources: Sequence[str]
    """`minilm`, or whatever `resolve_source` takes."""
    bundle: Path | None
    pooling: Pooling | None
    int8: bool
    """Whether bundles are to have int8 engines."""
    device: str
    corpus: Corpus | None
    others: Sequence[Subject]
    """Peers and servers."""
    against: Path | None = None
    """Another checkout of this project, whose runtime runs our engines too."""
    only: frozenset[str] = EVERYTHING
    """Of what subjects are measured for."""
    engines: frozenset[str] = frozenset()
    """Names of those engines alone; empty: all."""
    cache: Path
    """For what peers convert checkpoints into."""
    sizes: RunSizes


def run_bench(order: Order, result: Result, result_file: Path, *, report: Progress) -> None:
    """Measure into `result`, which is saved in `result_file` as it grows."""
    save = functools.partial(result.save, result_file)
    order.cache.mkdir(parents=True, exist_ok=True)
    calibration = order.cache / CALIBRATION_FILE
    calibration.write_text("\n".join(calibration_texts()) + "\n", encoding="utf-8")
    for name in order.sources:
        prepared = prepare_model(
            _find(name, report),
            pooling=order.pooling,
            bundle=order.bundle,
            int8=order.int8,
            n_threads=result.n_threads,
            device=order.device,
            report=report,
        )
        baselines = baseline_subjects(order.device)
        engines, flash = engine_subjects(prepared.bundle, order.device), flash_subjects(order.device)
        if order.engines:
            engines = [engine for engine in engines if engine.options["engine"] in order.engines]
        if order.against:
            engines += with_runtime(engines, order.against)
        subjects = [
            dataclasses.replace(subject, measured=subject.measured & order.only)
            for subject in (*baselines, *engines, *flash, *order.others)
        ]
        model = empty_result(prepared, baseline=baselines[0].name)
        result.models.append(model)
        measure_model(
            prepared,
            subjects,
            model,
            Run(
                sizes=order.sizes,
                corpus=order.corpus,
                cache=order.cache,
                calibration=calibration.absolute(),
                save=save,
                report=report,
            ),
        )
    result.is_complete = True
    save()


def _find(name: str, report: Progress) -> Source:
    return (
        minilm_source()
        if name == MINILM
        else resolve_source(name, progress=functools.partial(report, f"making {name}"))
    )


def empty_result(prepared: Prepared, *, baseline: str) -> ModelResult:
    """Nothing measured yet."""
    manifest = prepared.bundle.manifest
    entry = manifest.model
    return ModelResult(
        name=prepared.name,
        model_id=entry.id,
        weights_sha256=entry.weights_sha256,
        n_layers=entry.n_layers,
        hidden_size=entry.hidden_size,
        pooling=manifest.pooling_mode,
        is_standin=prepared.is_standin,
        baseline=baseline,
    )
