"""The steps on TensorRT, where it is installed: plans built, held against PyTorch, timed beside the CUDA backend."""

from __future__ import annotations

import dataclasses
import time
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from mexma_benchmarks.result.checks import Check, at_least, not_measured
from mexma_benchmarks.gpu_check.pytorch import PyTorchProcess, task_for
from mexma_benchmarks.gpu_check.run import Record
from mexma_benchmarks.gpu_check.setup import SDPA, Setup
from mexma_benchmarks.gpu_check.work import Work, random_ids
from mexma_benchmarks.result.estimates import ratios
from mexma_benchmarks.run.models import MINILM_PACKAGE, minilm_source
from mexma_benchmarks.run.timing import by_name, take_turns
from mexma_benchmarks.run.workload import thinned
from mexma_export.bundle.pipeline import export
from mexma_export.bundle.request import ExportRequest
from mexma_export.checkpoint.sources import Source
from mexma_export.corpus.corpus import sample_corpus
from mexma_export.parity.figures import compare
from mexma_export.quantize.options import QuantizationOptions
from mexma_export.quantize.recipe import FOR_TENSORRT, Recipe, Rounding, load_recipe
from mexma_export.targets.targets import BuildTarget, TargetOptions, make_target
from mexma_runtime import Encoder
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.types import Dialect, Precision, Ragged

BACKEND = "tensorrt"
PRECISIONS = (Precision.FP16, Precision.INT8, Precision.FP8)
MIN_MEAN_COSINE = {Precision.INT8: 0.999, Precision.FP8: 0.999}
MIN_COSINE_FP16 = 0.9999
MIN_GAIN = 1.3
"""Of int8 or fp8 over fp16, in batches of 64k tokens."""
LENGTH = 128
"""Of the sentences in bulk."""
PROFILES = ("latency:1", f"{65536 // LENGTH}x{LENGTH}", "throughput:8192")
"""Few, since each takes minutes to build: what is timed, and room for all else."""


def check_tensorrt_parity(setup: Setup, record: Record) -> None:
    """MiniLM's trained weights in all precisions, by plans built here, against PyTorch in fp32."""
    if _is_missing(record, "TensorRT, MiniLM"):
        return
    if find_spec(MINILM_PACKAGE.replace("-", "_")) is None:
        record.checks.append(not_measured("TensorRT, MiniLM", f"{MINILM_PACKAGE} is not installed", is_excused=True))
        return
    source, folder = minilm_source(), setup.out / "bundles" / "minilm-tensorrt"
    _build(source, folder, PRECISIONS, load_recipe(FOR_TENSORRT), setup, record, check_parity=True)
    bundle = Bundle.open(folder)
    options: dict[str, bool | str] = {"dtype": "fp32"}
    task = task_for(source, bundle.manifest, device=setup.device, n_threads=setup.n_threads, options=options)
    with PyTorchProcess(task) as pytorch:
        reference = None
        for precision in PRECISIONS:
            with Encoder.from_bundle(bundle, precision=precision, device=setup.device, backend=BACKEND) as encoder:
                ragged = encoder.tokenize(thinned(sample_corpus(), setup.sizes.n_judged)).ragged
                vectors = encoder.encode_ids(ragged)
            reference = pytorch.vectors(Work.of(ragged)) if reference is None else reference
            figures = compare(vectors, reference)
            mean = MIN_MEAN_COSINE.get(precision)
            record.checks.append(
                Check(
                    what=f"TensorRT {precision}, MiniLM: {'mean' if mean else 'least'} cosine to PyTorch fp32",
                    bar=at_least(mean or MIN_COSINE_FP16),
                    measured=figures.cosine_mean if mean else figures.cosine_min,
                    note=f"{figures.n_sentences} sentences; least {figures.cosine_min:.6f}, mean "
                    f"{figures.cosine_mean:.6f}",
                )
            )


def measure_tensorrt(setup: Setup, record: Record) -> None:
    """The checkpoint in fp16 and int8 beside our CUDA backend and PyTorch: one sentence, and 64k tokens a batch."""
    if _is_missing(record, "TensorRT, rates"):
        return
    folder, precisions = setup.out / "bundles" / "tensorrt", (Precision.FP16, Precision.INT8)
    _build(setup.source, folder, precisions, quick_recipe(), setup, record, check_parity=False)
    bundle = Bundle.open(folder)
    sizes, vocab_size = setup.sizes, bundle.manifest.model.vocab_size
    n_alike = min(65536 // LENGTH, sizes.n_alike)
    bulk = f"{n_alike} sentences of {LENGTH} tokens"
    work = {
        "one sentence of 32 tokens": (random_ids([32], vocab_size), sizes.n_calls),
        bulk: (random_ids([LENGTH] * n_alike, vocab_size), sizes.n_alike_batches),
    }
    with ExitStack() as stack:
        encoders = {"CUDA backend": setup.encoder}
        for precision in precisions:
            opened = Encoder.from_bundle(bundle, precision=precision, device=setup.device, backend=BACKEND)
            encoders[f"TensorRT {precision}"] = stack.enter_context(opened)
        for what, (ragged, n_calls) in work.items():
            calls = {name: partial(_call_ms, encoder, ragged, n_calls) for name, encoder in encoders.items()}
            calls["PyTorch"] = partial(_pytorch_ms, setup.pytorch(SDPA), Work.of(ragged), n_calls)
            samples_ms = by_name(take_turns(calls), sizes.n_rounds)
            record.samples[f"{what}, ms"] = samples_ms
            for ours, other, bar in (
                ("TensorRT int8", "TensorRT fp16", at_least(MIN_GAIN) if what == bulk else None),
                ("TensorRT fp16", "CUDA backend", None),
                ("TensorRT fp16", "PyTorch", None),
            ):
                record.checks.append(
                    Check(
                        what=f"{what}: {ours}, times as fast as {other}",
                        bar=bar,
                        measured=median(ratios(samples_ms[other], samples_ms[ours])),
                        note="; ".join(f"{name} {median(samples_ms[name]):.3g} ms" for name in (ours, other)),
                    )
                )
    setup.end_pytorch()


def quick_recipe() -> Recipe:
    """The shipped one without its search: as fast when it runs, quantized in a fraction of the time, less faithful."""
    return dataclasses.replace(
        load_recipe(FOR_TENSORRT),
        name="unsearched",
        smoothquant_alphas=(),
        smoothing_refinement_steps=0,
        clip_ratios=(1.0,),
        rounding=Rounding.NEAREST,
    )


def _build(
    source: Source,
    folder: Path,
    precisions: tuple[Precision, ...],
    recipe: Recipe,
    setup: Setup,
    record: Record,
    *,
    check_parity: bool,
) -> None:
    start_s = time.perf_counter()
    request = ExportRequest(
        out=folder,
        precisions=(Precision.FP32, *precisions) if check_parity else precisions,
        dialects=(Dialect.PORTABLE,),
        quantization=QuantizationOptions(recipes=(recipe,)),
        check_parity=check_parity,
    )
    export(source, request)
    exported_s = time.perf_counter()
    target = TargetOptions(target=BuildTarget.TENSORRT, device=setup.device, profiles=PROFILES)
    lines = make_target(folder, target, progress=lambda what, done, total: None)
    built_s = time.perf_counter()
    record.checks += [
        Check(what=f"{source.model_id}: graphs for TensorRT", unit="s", measured=exported_s - start_s),
        Check(what=f"{source.model_id}: plans built", unit="s", measured=built_s - exported_s, note="; ".join(lines)),
    ]


def _is_missing(record: Record, what: str) -> bool:
    if find_spec(BACKEND) is not None:
        return False
    record.checks.append(not_measured(what, "TensorRT is not installed", is_excused=True))
    return True


def _call_ms(encoder: Encoder, ragged: Ragged, n_calls: int) -> float:
    start_s = time.perf_counter()
    for _ in range(n_calls):
        encoder.encode_ids(ragged)
    return (time.perf_counter() - start_s) * 1e3 / n_calls


def _pytorch_ms(pytorch: PyTorchProcess, work: Work, n_calls: int) -> float:
    return sum(pytorch.times_ms(work, n_calls)) / n_calls
