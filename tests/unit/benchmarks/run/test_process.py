from __future__ import annotations

import dataclasses
import os
import signal
import venv
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from mexma_benchmarks.adapters.protocol import Task, Turn, unpack
from mexma_benchmarks.result.result import ModelResult, SubjectResult, Timing, Workload
from mexma_benchmarks.run.heat import Heat
from mexma_benchmarks.run.process import SubjectError, SubjectProcess, prepare
from mexma_benchmarks.run.subjects import Subject
from mexma_benchmarks.run.workload import Job, shape_job
from mexma_runtime import Encoder

TEXTS = ["the ferry leaves at noon", "rain", "two words"]
ENGINE = {"engine": "fused.fp32", "precision": "fp32", "backend": "onnxruntime"}


@pytest.fixture(scope="module")
def task(tiny_bundle: Path, tiny_checkpoint: Path) -> Task:
    return Task(
        checkpoint=str(tiny_checkpoint),
        tokenizer=str(tiny_checkpoint),
        pooling="cls",
        is_normalized=False,
        max_tokens=64,
        n_threads=1,
        device="cpu",
        folder=str(tiny_bundle),
        first_text=TEXTS[0],
        options=ENGINE,
    )


@pytest.fixture
def process(task: Task) -> Iterator[SubjectProcess]:
    with SubjectProcess("mexma", task) as started:
        _ = started.ready
        yield started


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_subject_gives_the_vectors_that_its_library_gives(process: SubjectProcess, tiny_bundle: Path) -> None:
    with Encoder.load(tiny_bundle, precision="fp32") as encoder:
        expected = encoder.encode(TEXTS)

    assert np.allclose(unpack(process.ask({"do": "vectors", "texts": TEXTS})), expected, atol=1e-6)


def test_a_subject_says_what_it_is_and_times_itself(process: SubjectProcess) -> None:
    ready = process.ready
    timed = process.ask({"do": "encode", "texts": TEXTS})

    assert ready.start_ms > 0
    assert ready.peak_rss_bytes is not None
    assert 20e6 < ready.peak_rss_bytes < 1e9
    assert "onnxruntime" in ready.versions
    assert set(timed["stages_ms"]) == {"tokenize", "copy", "compute"}
    assert 0 < sum(timed["stages_ms"].values()) <= timed["ms"]
    assert process.ask({"do": "encode_ids", "ids": [[0, 5, 2]]})["stages_ms"]["tokenize"] == 0
    assert len(process.ask(load_request())["latencies_ms"]) == 3


def test_a_turn_may_have_several_calls_which_are_all_told(process: SubjectProcess) -> None:
    def ask(**turn: object) -> list[float]:
        answer = process.ask({"do": "encode_ids", "ids": [[0, 5, 2]], "turn": turn})
        calls_ms: list[float] = answer["calls_ms"]
        assert answer["ms"] == pytest.approx(np.median(calls_ms))
        assert sum(answer["stages_ms"].values()) <= max(calls_ms)
        return calls_ms

    assert len(ask(n_calls=5, n_warmups=2)) == 5
    assert len(ask(n_calls=50, limit_s=0.0)) == 1
    assert process.ask({"do": "encode_ids", "ids": [[0, 5, 2]]})["calls_ms"] == []


def load_request() -> dict[str, object]:
    return {"do": "serve_load", "texts": TEXTS, "arrivals_s": [0.0, 0.001, 0.002], "patience_s": 60}


def test_a_subject_is_stopped_but_for_its_turns(process: SubjectProcess) -> None:
    assert state_of(process.pid) == "T"
    with process.awake():
        assert state_of(process.pid) in "SRD"
    process.ask({"do": "encode", "texts": TEXTS})
    assert state_of(process.pid) == "T"


def test_closing_ends_a_stopped_subject(task: Task) -> None:
    process = SubjectProcess("mexma", task)
    process.close()

    assert not Path(f"/proc/{process.pid}").exists()
    process.close()


def test_why_a_subject_did_not_start_is_said(task: Task, tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match="not a bundle: the folder does not exist"):
        _ = SubjectProcess("mexma", dataclasses.replace(task, folder=str(tmp_path / "none"))).ready
    with pytest.raises(SubjectError, match=r"exit status 1.*No module named mexma_benchmarks.adapters.none"):
        _ = SubjectProcess("none", task).ready
    with pytest.raises(SubjectError, match="no answer within 0 s"):
        _ = SubjectProcess("mexma", task, limit_s=0.01).ready


def test_a_bad_request_is_answered_and_the_next_one_served(process: SubjectProcess) -> None:
    with pytest.raises(SubjectError, match="InputError"):
        process.ask({"do": "encode_ids", "ids": [[]]})
    with pytest.raises(SubjectError, match="unknown request 'dance'"):
        process.ask({"do": "dance"})
    assert process.ask({"do": "encode", "texts": TEXTS})["ms"] > 0


def test_a_subject_that_dies_says_of_what(process: SubjectProcess) -> None:
    os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(SubjectError, match="killed by SIGKILL"):
        process.ask({"do": "encode", "texts": TEXTS})


def test_a_line_that_is_no_answer_is_the_subjects_failure(process: SubjectProcess) -> None:
    process._buffer = b"a library prints\n"
    with pytest.raises(SubjectError, match="it wrote what is no answer: b'a library prints'"):
        process.ask({"do": "vectors", "texts": TEXTS})


def test_an_environment_without_this_project_runs_adapters(task: Task, tmp_path: Path) -> None:
    venv.create(tmp_path / "empty", with_pip=False)
    python = tmp_path / "empty" / "bin" / "python"

    # The adapter is found, and what it is for is not.
    with pytest.raises(SubjectError, match="No module named 'numpy'"):
        _ = SubjectProcess("mexma", task, python=python).ready


def test_preparing_runs_in_a_process_too(task: Task) -> None:
    prepare("mexma", task)
    with pytest.raises(SubjectError, match="No module named"):
        prepare("none", task)


def heat_of(task: Task, *names: str) -> tuple[Heat, ModelResult]:
    model = ModelResult(
        name="tiny",
        model_id="standin:tiny",
        weights_sha256="0",
        n_layers=3,
        hidden_size=64,
        pooling="cls",
        is_standin=True,
        baseline=names[0],
    )
    heat, subjects = Heat(0, model), []
    for name in names:
        subject = Subject(name=name, role="engine", adapter="mexma", options=ENGINE)
        model.subjects.append(SubjectResult(name=name, role="engine", adapter="mexma", options={}))
        subjects.append((subject, task))
    heat.start(subjects, n_at_once=2)
    return heat, model


JOB = Job(
    workload=Workload(kind="texts", name="3 texts", n_sentences=3, n_tokens=20),
    request={"do": "encode", "texts": TEXTS},
)


def test_subjects_of_a_heat_have_samples_of_the_same_rounds(task: Task) -> None:
    heat, model = heat_of(task, "a", "b")
    with heat:
        heat.time(JOB, lambda round_s: 4, lambda done, total: None)

    [timing] = model.timings
    assert {name: len(samples) for name, samples in timing.samples_ms.items()} == {"a": 4, "b": 4}
    assert [set(stages) for stages in timing.stages_ms["a"]] == [{"tokenize", "copy", "compute"}] * 4


def test_the_calls_of_a_turn_are_kept_beside_their_median(task: Task) -> None:
    heat, model = heat_of(task, "a", "b")
    round_s = []

    def n_rounds(seconds: float) -> int:
        round_s.append(seconds)
        return 2

    with heat:
        heat.time(shape_job(1, 8, 100, Turn(n_calls=3, n_warmups=1)), n_rounds, lambda done, total: None)

    [timing] = model.timings
    for name in ("a", "b"):
        assert [len(turn) for turn in timing.calls_ms[name]] == [3, 3]
        assert [float(np.median(turn)) for turn in timing.calls_ms[name]] == timing.samples_ms[name]
    first = [turns[0] for turns in timing.calls_ms.values()]
    assert round_s == [pytest.approx(sum(map(sum, first)) / 1e3)]


def test_a_subject_that_does_not_start_has_the_reason_and_the_others_run(task: Task) -> None:
    heat, model = heat_of(task, "a")
    for name, adapter, options in (
        ("not here", "pytorch", {"unpadded": True}),
        ("broken", "mexma", ENGINE | {"engine": "none"}),
        ("b", "mexma", ENGINE),
    ):
        model.subjects.append(SubjectResult(name=name, role="peer", adapter=adapter, options={}))
        subject = Subject(name=name, role="peer", adapter=adapter)
        with heat if name == "b" else nullcontext():
            heat.start([(subject, dataclasses.replace(task, options=options))])
            assert heat.is_running(name) == (name == "b")
    assert model.subject("not here").status == "unavailable"
    assert "takes fp16 and bf16 on a CUDA GPU" in (model.subject("not here").reason or "")
    broken = model.subject("broken")
    assert broken.status == "failed"
    assert "no engine 'none'" in (broken.reason or "")
    assert str(Path(task.folder).parent) not in (broken.reason or "")


def test_a_subject_that_fails_drops_out_and_the_others_go_on(task: Task) -> None:
    heat, model = heat_of(task, "a", "b")

    def kill_b_in_the_second_round(done: int, total: int) -> None:
        if done == 2:
            os.kill(heat.pid("b"), signal.SIGKILL)

    with heat:
        heat.time(JOB, lambda round_s: 4, kill_b_in_the_second_round)
        assert heat.names("texts") == ["a"]

    assert {name: len(samples) for name, samples in model.timings[0].samples_ms.items()} == {"a": 4, "b": 2}
    assert model.subject("b").status == "failed"
    assert "SIGKILL" in (model.subject("b").reason or "")


def test_an_interrupted_workload_keeps_its_whole_rounds(task: Task) -> None:
    heat, model = heat_of(task, "a", "b")

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with heat, pytest.raises(KeyboardInterrupt):
        heat.time(JOB, lambda round_s: 9, interrupt)

    timing: Timing = model.timings[0]
    assert {name: len(samples) for name, samples in timing.samples_ms.items()} == {"a": 2, "b": 2}
