"""`mexma bench` from the command line to the report, on a tiny model; other processes run for real."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mexma_benchmarks.cli import register_bench
from mexma_benchmarks.result.result import ModelResult, Result
from mexma_benchmarks.run.sizes import SIZES, Effort
from mexma_benchmarks.run.subjects import engine_subjects
from mexma_export.checkpoint.standin import write_standin
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.errors import FileError, MexmaError, MissingDependencyError, UsageError

pytest.importorskip("torch")
pytest.importorskip("transformers")

SMOKE = SIZES[Effort.SMOKE]


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    app = typer.Typer()
    register_bench(app)
    return app


def run(app: typer.Typer, *words: str | Path) -> str:
    result = CliRunner().invoke(app, ["bench", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def failure(app: typer.Typer, *words: str | Path) -> MexmaError:
    result = CliRunner().invoke(app, ["bench", *map(str, words)])
    assert isinstance(result.exception, MexmaError), result.output
    return result.exception


@pytest.fixture(scope="module")
def out(app: typer.Typer, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a whole run, with a peer that is not installed and a server that is not there."""
    folder = tmp_path_factory.mktemp("bench")
    bundle = shutil.copytree(tiny_bundle, folder / "bundle")
    places = ("--out", folder / "out", "--bundle", bundle, "--peers-folder", folder / "peers")
    others = ("--peer", "CTranslate2 int8", "--url", "http://127.0.0.1:9/v1/embeddings")
    run(app, "run", tiny_checkpoint, "--effort", "smoke", "--threads", "1", *places, *others)
    return folder / "out"


@pytest.fixture(scope="module")
def model(out: Path) -> ModelResult:
    result = Result.load(out / "result.json")
    assert result.is_complete
    [model] = result.models
    return model


PYTORCH, SORTED = "PyTorch fp32", "PyTorch fp32, sorted"


@pytest.fixture(scope="module")
def engines(tiny_bundle: Path) -> list[str]:
    """Of our subjects, which are more where OpenVINO is installed."""
    found = [subject.name for subject in engine_subjects(Bundle.open(tiny_bundle), "cpu")]
    assert found[0].startswith("mexma fused.fp32")
    assert len(found) == (5 if find_spec("openvino") else 4)
    return found


def test_every_engine_and_baseline_is_measured_in_every_workload(model: ModelResult, engines: list[str]) -> None:
    *shapes, one, texts, cold = model.timings

    assert [(t.workload.batch, t.workload.length) for t in shapes] == list(SMOKE.grid)
    for timing in shapes:
        assert {name: len(ms) for name, ms in timing.samples_ms.items()} == dict.fromkeys([PYTORCH, *engines], 2)
    for timing in (one, texts):
        assert {name: len(ms) for name, ms in timing.samples_ms.items()} == dict.fromkeys(
            [PYTORCH, SORTED, *engines], 2
        )
        assert all(len(timing.stages_ms[name]) == 2 for name in engines)
    assert (one.workload.n_sentences, texts.workload.n_sentences) == (1, SMOKE.n_texts)
    assert {name: len(ms) for name, ms in cold.samples_ms.items()} == dict.fromkeys([PYTORCH, *engines], 1)


def test_a_cold_start_tells_the_peak_memory_of_its_own_process(model: ModelResult, engines: list[str]) -> None:
    ours, pytorch = (model.subject(name).peak_rss_bytes for name in (engines[0], PYTORCH))

    assert len(ours) == len(pytorch) == 1
    assert 20e6 < ours[0] < pytorch[0]
    assert (model.subject(engines[0]).peak_rss_after_bytes or 0) >= 0.9 * ours[0]
    assert model.subject(SORTED).peak_rss_after_bytes is None


def test_vectors_are_held_against_the_reference_by_length_and_language(model: ModelResult, engines: list[str]) -> None:
    for name in (PYTORCH, *engines):
        fidelity = model.subject(name).fidelity
        assert fidelity is not None
        assert fidelity.figures.n_sentences == SMOKE.n_judged
        assert fidelity.figures.cosine_min >= (0.9999 if "fp16" in name else 0.999999)
        assert fidelity.invariance is not None
        assert fidelity.invariance.cosine_min >= 0.9999
        assert sum(figures.n_sentences for figures in fidelity.by_length.values()) == SMOKE.n_judged
        assert sum(figures.n_sentences for figures in fidelity.by_language.values()) == SMOKE.n_judged
        assert (fidelity.uncertified is not None) == ("fp16" in name)


def test_load_is_measured_of_the_baseline_and_the_first_engine(model: ModelResult, engines: list[str]) -> None:
    assert {run.subject for run in model.load_runs} == {PYTORCH, engines[0]}
    assert all(0 < len(run.latencies_ms) <= run.n_arrivals for run in model.load_runs)


def test_many_callers_are_measured_of_the_first_engine(model: ModelResult, engines: list[str], out: Path) -> None:
    assert {run.subject for run in model.client_runs} == {run.subject for run in model.beside_runs} == {engines[0]}
    kinds = [(run.clients, run.n_clients, run.texts_a_call) for run in model.client_runs]
    assert kinds == [("threads", 1, 1), ("threads", 64, 1), ("coroutines", 64, 1), ("threads", 1, 64)]
    assert all(run.latencies_ms and run.seconds >= SMOKE.client_s for run in model.client_runs)
    (beside,) = model.beside_runs
    assert len(beside.latencies_ms) == 3
    assert min(beside.batch_ms) > 0
    assert "### Many callers at once" in (out / "report.md").read_text(encoding="utf-8")


def test_what_cannot_be_measured_has_a_row_that_says_why(model: ModelResult, out: Path) -> None:
    peer, server = model.subject("CTranslate2 int8"), model.subject("http://127.0.0.1:9/v1/embeddings")

    assert (peer.status, peer.reason) == ("unavailable", "not installed: make peers")
    assert server.status == "failed"
    assert "127.0.0.1" in (server.reason or "")
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "not installed: make peers" in report
    assert server.reason is not None


def test_the_report_is_written_in_every_form_and_can_be_written_again(
    app: typer.Typer, out: Path, tmp_path: Path
) -> None:
    run(app, "report", out / "result.json", "--out", tmp_path)

    for name in ("report.md", "report.html", "fidelity.png"):
        assert (tmp_path / name).stat().st_size == (out / name).stat().st_size > 0


def test_a_report_can_hold_all_against_another_subject(app: typer.Typer, out: Path, tmp_path: Path) -> None:
    ours = "mexma portable.fp32 on openvino"
    run(app, "report", out / "result.json", "--out", tmp_path, "--baseline", ours)

    summary = (tmp_path / "report.md").read_text(encoding="utf-8").split("## Conditions")[0]
    assert f"| times as fast as {ours} |" in summary
    (row,) = [line.split(" | ") for line in summary.splitlines() if line.startswith(f"| {ours} |")]
    assert row[2] == "1"
    assert Result.load(out / "result.json").models[0].baseline == "PyTorch fp32"
    assert "choose another folder" in str(failure(app, "report", out / "result.json", "--baseline", ours))
    unknown = str(failure(app, "report", out / "result.json", "--out", tmp_path, "--baseline", "NNCF"))
    assert "no subject called 'NNCF' was timed" in unknown
    assert repr(ours) in unknown


def test_a_result_compared_with_itself_has_no_difference(app: typer.Typer, out: Path) -> None:
    assert "Larger than the noise: nothing" in run(app, "compare", out / "result.json", out / "result.json")


def test_results_of_unlike_hosts_are_compared_only_on_demand(app: typer.Typer, out: Path, tmp_path: Path) -> None:
    other = Result.load(out / "result.json")
    hardware = dataclasses.replace(other.environment.hardware, processor="Another one")
    other.environment = dataclasses.replace(other.environment, hardware=hardware)
    other.save(tmp_path / "other.json")

    error = failure(app, "compare", out / "result.json", tmp_path / "other.json")

    assert "Another one" in str(error)
    assert "--allow-unlike-hosts" in str(error)
    run(app, "compare", out / "result.json", tmp_path / "other.json", "--allow-unlike-hosts")


def test_a_bundle_of_other_weights_or_pooling_is_refused(
    app: typer.Typer, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    other = write_standin("tiny", tmp_path / "other", seed=1)
    words = ("--bundle", tiny_bundle, "--out", tmp_path / "out", "--peers-folder", tmp_path)

    assert "differs: weights" in str(failure(app, "run", other, *words))
    assert "pools cls, not mean" in str(failure(app, "run", tiny_checkpoint, "--pooling", "mean", *words))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_meant_is_refused_before_anything_runs(app: typer.Typer, tmp_path: Path) -> None:
    for words, said in (
        (("a", "b", "--bundle", tmp_path), "belongs to one source"),
        (("a", "--peer", "nobody"), "no peer is called 'nobody'"),
        (("a", "--url", "localhost:80"), "expected http://HOST:PORT/v1/embeddings"),
    ):
        error = failure(app, "run", *words)
        assert isinstance(error, UsageError)
        assert said in str(error)


def test_files_that_cannot_be_read_or_written_are_told_before_anything_runs(app: typer.Typer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for words, said in (
        (("run", "a", "--out", tmp_path / "file" / "out"), "file/result.json: cannot be written: Not a directory"),
        (("run", "a", "--corpus", tmp_path / "none"), "none: cannot be read: No such file"),
        (("report", tmp_path / "none"), "none: cannot be read: No such file"),
    ):
        error = failure(app, *words)
        assert isinstance(error, FileError)
        assert said in str(error)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_what_is_not_installed_is_named_before_anything_runs(app: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    error = failure(app, "run", "standin:tiny")

    assert isinstance(error, MissingDependencyError)
    assert "mexma-runtime[bench]" in str(error)


def test_results_of_another_schema_or_of_none_are_refused(app: typer.Typer, tmp_path: Path) -> None:
    for text, said in (("{}", "schema None"), ("[1]", "not a result"), ('{"schema": 2}', "does not fit schema 2")):
        (tmp_path / "result.json").write_text(text)
        assert said in str(failure(app, "report", tmp_path / "result.json"))


def test_interrupting_keeps_what_was_measured(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    words = ["bench", "run", str(tiny_checkpoint), "--bundle", str(tiny_bundle), "--out", str(tmp_path / "out")]
    few = ["--engine", "fused.fp32", "--peers-folder", str(tmp_path), "--threads", "1"]
    command = [sys.executable, "-m", "mexma_runtime", *words, *few]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    result_file = tmp_path / "out" / "result.json"
    try:
        while not (result_file.is_file() and Result.load(result_file).models[0].timings):
            assert process.poll() is None
            time.sleep(0.2)
        assert _processes_with(tiny_checkpoint)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 130
    assert "what was measured is kept" in said
    kept = Result.load(result_file)
    assert not kept.is_complete
    assert kept.models[0].timings[0].samples_ms
    assert "This run did not finish" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert not _processes_with(tiny_checkpoint)


def _processes_with(checkpoint: Path) -> list[str]:
    """Processes whose task names this test's checkpoint."""
    left = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            if str(checkpoint).encode() in entry.read_bytes():
                left.append(entry.parent.name)
    return left
