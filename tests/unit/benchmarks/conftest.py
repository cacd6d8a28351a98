"""A whole result without a run: two models, subjects of every kind, and what goes wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.text import Text

from mexma_benchmarks.report.charts import Chart
from mexma_benchmarks.result.environment import Environment
from mexma_benchmarks.result.result import Fidelity, LoadRun, ModelResult, Result, Role, SubjectResult, Timing, Workload
from mexma_export.parity.figures import InvarianceFigures, ParityFigures
from mexma_runtime.hardware import Hardware

BASELINE = "PyTorch fp32"
SUBJECTS: tuple[tuple[str, Role, float, float], ...] = (
    # name, role, times as fast as the baseline, ten nearest kept
    (BASELINE, "baseline", 1.0, 1.0),
    ("PyTorch fp32, sorted", "baseline", 1.9, 1.0),
    ("mexma fused.fp32 on onnxruntime", "engine", 2.1, 1.0),
    ("mexma portable.fp32 on openvino", "engine", 2.2, 1.0),
    ("mexma fused.fp16 on onnxruntime", "engine", 1.6, 0.9993),
    ("mexma portable.int8.fast.uint8 on openvino", "engine", 6.1, 0.961),
    ("mexma portable.int8.precise.uint8 on openvino", "engine", 5.3, 0.969),
    ("mexma fused.int8.fast.uint8 on onnxruntime", "engine", 3.7, 0.944),
    ("mexma fused.int8.precise.uint8 on onnxruntime", "engine", 3.1, 0.958),
    ("sentence-transformers torch", "peer", 1.85, 1.0),
    ("sentence-transformers onnx", "peer", 1.95, 1.0),
    ("sentence-transformers onnx int8", "peer", 3.9, 0.884),
    ("sentence-transformers openvino", "peer", 2.0, 0.998),
    ("sentence-transformers openvino int8", "peer", 4.4, 0.924),
    ("optimum onnx", "peer", 1.9, 1.0),
    ("CTranslate2 int8", "peer", 3.6, 0.93),
    ("OpenVINO NNCF int8", "peer", 5.4, 0.926),
    ("infinity-emb", "peer", 1.8, 1.0),
)
SHAPES = ((1, 8), (1, 16), (1, 32), (1, 64), (1, 128), (1, 256), (4, 32), (8, 32), (16, 32), (32, 32))


def figures(top10: float, n: int = 500) -> ParityFigures:
    off = 1 - top10
    return ParityFigures(
        n_sentences=n,
        cosine_min=1 - 0.2 * off,
        cosine_p1=1 - 0.1 * off,
        cosine_mean=1 - 0.02 * off,
        max_abs_difference=1e-7 + 0.1 * off,
        norm_ratio_min=1 - 0.01 * off,
        norm_ratio_max=1 + 0.01 * off,
        relative_error_mean=1e-7 + 0.5 * off,
        relative_error_max=1e-6 + off,
        top1_agreement=top10,
        top10_agreement=top10,
        mixed_top1_agreement=top10,
        mixed_top10_agreement=top10,
    )


@pytest.fixture
def environment() -> Environment:
    return Environment(
        hardware=Hardware(
            processor="Example 9000",
            instruction_sets=("avx2", "avx512f"),
            n_logical_cpus=4,
            n_physical_cores=2,
            cpu_quota=None,
            memory_total_bytes=24_000_000_000,
            memory_available_bytes=20_000_000_000,
        ),
        gpus=(),
        system="Linux 6.1 x86_64",
        python="3.11.7",
        versions={"mexma-runtime": "0.1.0", "torch": "2.13.0", "openvino": None},
        commit="0123456789abcdef",
        command=("mexma", "bench", "run"),
        variables={},
        started="2026-01-02T03:04:05+00:00",
        load_average=0.0,
    )


@pytest.fixture
def small_result(environment: Environment) -> Result:
    """A model with a baseline, one engine and no measurements."""
    model = ModelResult(
        name="small",
        model_id="standin:small",
        weights_sha256="0" * 64,
        n_layers=2,
        hidden_size=8,
        pooling="cls",
        is_standin=True,
        baseline="theirs",
        subjects=[
            SubjectResult(name="theirs", role="baseline", adapter="pytorch", options={}),
            SubjectResult(name="ours", role="engine", adapter="mexma", options={}),
        ],
    )
    return Result(environment=environment, n_threads=2, settings={"effort": "quick"}, is_complete=True, models=[model])


@pytest.fixture
def full_result(environment: Environment) -> Result:
    """A full-size stand-in and a small model with trained weights; 18 subjects were measured and two were not."""
    models = [_model("standin:mexma", 24, 1024, speed=1.0), _model("all-MiniLM-L6-v2", 6, 384, speed=40.0)]
    return Result(
        environment=environment,
        n_threads=2,
        settings={"effort": "full", "share_s": 40.0},
        is_complete=True,
        models=models,
    )


def _model(name: str, n_layers: int, hidden_size: int, *, speed: float) -> ModelResult:
    random = np.random.default_rng(n_layers)
    is_standin = name.startswith("standin:")
    model = ModelResult(
        name=name,
        model_id=name,
        weights_sha256=f"{n_layers:064x}",
        n_layers=n_layers,
        hidden_size=hidden_size,
        pooling="cls" if is_standin else "mean",
        is_standin=is_standin,
        baseline=BASELINE,
        p99_bound_ms=800 / speed,
        reference="transformers 5.23.0 on torch 2.13.0, fp32, sdpa",
        fidelity_corpus="sample, 500 sentences",
    )
    for subject, role, _, top10 in SUBJECTS:
        uncertified = "fp16 judged on a CPU" if "fp16" in subject else None
        model.subjects.append(
            SubjectResult(
                name=subject,
                role=role,
                adapter="pytorch",
                options={},
                versions={"torch": "2.13.0"},
                provider="CPU",
                batching="batches of 32, sorted by length",
                prepare_s=63.2 if role == "peer" else None,
                disk_bytes=int(2.2e9 / speed),
                peak_rss_bytes=[int(1e9 / speed)] * 3,
                fidelity=Fidelity(
                    figures=figures(top10),
                    invariance=InvarianceFigures(cosine_min=0.9999999, max_abs_difference=1e-7),
                    by_length={"1-8": figures(top10, 200), "9-16": figures(top10 - 0.01, 300)},
                    by_language={"en": figures(top10, 250), "de": figures(top10 - 0.02, 250)},
                    uncertified=uncertified,
                ),
            )
        )
    model.subjects += [
        SubjectResult(
            name="optimum int8", role="peer", adapter="x", options={}, status="failed", reason="RuntimeError: no kernel"
        ),
        SubjectResult(
            name="text-embeddings-inference",
            role="peer",
            adapter="x",
            options={},
            status="unavailable",
            reason="not installed: make peers",
        ),
    ]
    names = [subject[0] for subject in SUBJECTS]
    factors = {subject[0]: subject[2] for subject in SUBJECTS}
    heats = [names[:8], [BASELINE, *names[8:]]]

    def add(workload: Workload, ms: float, n_rounds: int) -> None:
        for heat, members in enumerate(heats):
            timing = Timing(workload=workload, heat=heat)
            for subject in members:
                if workload.kind == "ids" and subject in ("infinity-emb", "sentence-transformers torch"):
                    timing.not_offered[subject] = "it takes texts only"
                    continue
                noise = 1 + 0.02 * random.standard_normal(n_rounds)
                timing.samples_ms[subject] = (ms / factors[subject] / speed * noise).tolist()
                if workload.kind == "texts" and subject.startswith("mexma"):
                    timing.stages_ms[subject] = [{"tokenize": 1.5, "copy": 0.25, "compute": 100.0}] * n_rounds
            model.timings.append(timing)

    for batch, length in SHAPES:
        shape = f"{batch} x {length} tokens"
        n_tokens = batch * length
        workload = Workload(kind="ids", name=shape, n_sentences=batch, n_tokens=n_tokens, batch=batch, length=length)
        add(workload, 60 + 2.2 * n_tokens, 9)
    add(Workload(kind="texts", name="1 text", n_sentences=1, n_tokens=8, batch=1, length=8), 150, 9)
    add(Workload(kind="texts", name="256 texts of drawn lengths", n_sentences=256, n_tokens=2970), 23000, 6)
    add(Workload(kind="cold start", name="process start to first vector", n_sentences=1, n_tokens=0), 4000, 4)
    for subject in (BASELINE, *names[2:6], "OpenVINO NNCF int8"):
        for rate in (1.5 * speed, 3 * speed, 6 * speed, 12 * speed):
            usage = min(rate / (6 * factors[subject] * speed), 1.5)
            mean_ms = 150 / factors[subject] / speed * (1 / (1 - usage) if usage < 0.95 else 40 * usage)
            latencies_ms = random.gamma(4, mean_ms / 4, max(1, int(30 * rate))).tolist()
            model.load_runs.append(
                LoadRun(
                    subject=subject,
                    rate_per_s=rate,
                    duration_s=30,
                    seed=0,
                    n_arrivals=len(latencies_ms),
                    latencies_ms=latencies_ms,
                )
            )
    return model


def _misplaced(chart: Chart) -> list[str]:
    """What is written in a chart on something else that is, or outside of the picture."""
    chart.figure.draw_without_rendering()
    written = [text for text in chart.figure.findobj(Text) if text.get_visible() and text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in written]
    frame = chart.figure.bbox
    outside = [
        f"{name} outside"
        for name, box in boxes
        if box.x0 < frame.x0 - 1 or box.x1 > frame.x1 + 1 or box.y0 < frame.y0 - 1 or box.y1 > frame.y1 + 1
    ]
    return outside + [
        f"{name} on {other}"
        for (name, box), (other, its) in itertools.combinations(boxes, 2)
        if box.x0 < its.x1 and its.x0 < box.x1 and box.y0 < its.y1 and its.y0 < box.y1
    ]


@pytest.fixture(scope="session")
def misplaced() -> Callable[[Chart], list[str]]:
    return _misplaced
