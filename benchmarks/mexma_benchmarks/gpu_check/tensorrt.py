"""The steps on TensorRT, where it is installed: plans built, held against PyTorch, timed beside the CUDA backend."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from mexma_benchmarks.gpu_check import bars
from mexma_benchmarks.gpu_check.lineup import IDS, VECTORS
from mexma_benchmarks.gpu_check.speed import measured_so_far, minilm_problem
from mexma_benchmarks.gpu_check.steps import Setup
from mexma_benchmarks.result.checks import Check, Record, at_least, not_measured, without_folders
from mexma_benchmarks.run.models import minilm_source
from mexma_benchmarks.run.prepared import Prepared
from mexma_benchmarks.run.subjects import Subject, engine_subjects
from mexma_export.bundle.pipeline import export
from mexma_export.bundle.request import ExportRequest
from mexma_export.checkpoint.sources import Source
from mexma_export.quantize.options import QuantizationOptions
from mexma_export.quantize.recipe import FOR_TENSORRT, Recipe, Rounding, load_recipe
from mexma_export.targets.targets import BuildTarget, TargetOptions, make_target
from mexma_runtime.types import Dialect, Precision

BACKEND = "tensorrt"
PRECISIONS = (Precision.FP16, Precision.INT8, Precision.FP8)
MIN_MEAN_COSINE = 0.999
"""Of int8 and fp8."""
MIN_GAIN = 1.3
"""Of int8 over fp16, in batches of 64k tokens."""
PROFILES = ("latency:1", "512x128", "throughput:8192")
"""Few, since each takes minutes to build: what is timed, and room for all else."""


def check_tensorrt_parity(setup: Setup, record: Record) -> None:
    """MiniLM's trained weights in all precisions, by plans built here."""
    if (reason := tensorrt_problem() or minilm_problem()) is not None:
        record.checks.append(not_measured("TensorRT, MiniLM", reason, is_excused=True))
        return
    source, folder = minilm_source(), "minilm-tensorrt"
    precisions = (Precision.FP32, *PRECISIONS)
    _build(source, setup.out / "bundles" / folder, precisions, load_recipe(FOR_TENSORRT), setup, record)
    prepared = setup.prepare(source, folder)
    model, subjects = setup.model_of(prepared), _plans(prepared, setup.device, VECTORS)
    setup.measure(prepared, subjects, model, setup.sizes.of_vectors)
    for subject in subjects:
        mean = None if subject.options["precision"] == Precision.FP16 else MIN_MEAN_COSINE
        record.checks += bars.vector_bars(model, [subject], least=bars.MIN_COSINE, mean=mean)


def measure_tensorrt(setup: Setup, record: Record) -> None:
    """The checkpoint in fp16 and int8 beside our CUDA backend and PyTorch: one sentence, and 64k tokens a batch."""
    if (reason := tensorrt_problem()) is not None:
        record.checks.append(not_measured("TensorRT, rates", reason, is_excused=True))
        return
    source, folder = setup.prepared.checkpoint.source, setup.prepared.bundle.folder
    _build(source, folder, (Precision.INT8,), quick_recipe(), setup, record)
    prepared, ours, baseline = setup.prepare(source, folder.name), setup.lineup.ours, setup.lineup.baseline
    plans = {plan.options["precision"]: plan for plan in _plans(prepared, setup.device, IDS)}
    fp16, int8 = plans[Precision.FP16], plans[Precision.INT8]
    sizes = replace(setup.sizes.of_late, with_their_ids=False, n_texts=1)
    setup.measure(prepared, [ours, fp16, int8], setup.model, sizes)
    for work in (bars.ONE, bars.SHORT):
        gain = at_least(MIN_GAIN) if work == bars.SHORT else None
        for one, other, bar in ((int8, fp16, gain), (fp16, ours, None), (fp16, baseline, None)):
            record.checks.append(bars.speed_bar(measured_so_far(setup), work, one, other, bar))


def tensorrt_problem() -> str | None:
    """Why TensorRT cannot be measured; None where it can."""
    return None if find_spec(BACKEND) else "TensorRT is not installed"


def quick_recipe(shipped: str = FOR_TENSORRT) -> Recipe:
    """A shipped one without its search: as fast when it runs, quantized in a fraction of the time, less faithful."""
    return replace(
        load_recipe(shipped),
        name="unsearched",
        smoothquant_alphas=(),
        smoothing_refinement_steps=0,
        clip_ratios=(1.0,),
        rounding=Rounding.NEAREST,
    )


def _plans(prepared: Prepared, device: str, measured: frozenset[str]) -> list[Subject]:
    """The engines of the bundle that TensorRT runs."""
    subjects = engine_subjects(prepared.bundle, device)
    return [replace(one, measured=measured) for one in subjects if one.options.get("backend") == BACKEND]


def _build(
    source: Source, folder: Path, precisions: tuple[Precision, ...], recipe: Recipe, setup: Setup, record: Record
) -> None:
    """Graphs, judged where there is fp32 among them, and their plans."""
    start_s = time.perf_counter()
    request = ExportRequest(
        out=folder,
        precisions=precisions,
        dialects=(Dialect.PORTABLE,),
        quantization=QuantizationOptions(recipes=(recipe,)),
        check_parity=Precision.FP32 in precisions,
    )
    export(source, request)
    exported_s = time.perf_counter()
    target = TargetOptions(target=BuildTarget.TENSORRT, device=setup.device, profiles=PROFILES)
    lines = make_target(folder, target, progress=lambda what, done, total: None)
    built_s, note = time.perf_counter(), without_folders("; ".join(lines))
    record.checks += [
        Check(what=f"{source.model_id}: graphs for TensorRT", unit="s", measured=exported_s - start_s),
        Check(what=f"{source.model_id}: plans built", unit="s", measured=built_s - exported_s, note=note),
    ]
