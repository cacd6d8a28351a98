from __future__ import annotations

import pytest

from mexma_benchmarks.environment import detect_environment
from mexma_benchmarks.measurement import GRID, PYTORCH, Plan, Recorder, Subject, measure
from mexma_benchmarks.report import markdown
from mexma_benchmarks.result import ModelResult, Result, Timing
from mexma_benchmarks.timing import rounds
from mexma_benchmarks.workload import draw_lengths
from mexma_export.sources import resolve_source
from mexma_export.standin import write_standin
from mexma_runtime.errors import UsageError
from mexma_runtime.types import Pooling

pytest.importorskip("torch")
pytest.importorskip("transformers")

PLAN = Plan(n_threads=1, n_rounds=1, n_text_rounds=1, n_cold_starts=1, n_texts=40, corpus=None)


def quietly(what: str, done: int, total: int) -> None: ...


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("tiny")
    source = resolve_source(str(write_standin("tiny", folder / "checkpoint")))
    return Subject(name="tiny", source=source, pooling=None, bundle=folder / "bundle")


@pytest.fixture(scope="module")
def result(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Result:
    measured = Result(environment=detect_environment("x"), n_threads=1)
    path = tmp_path_factory.mktemp("out") / "results.json"
    measure(subject, PLAN, measured, save=lambda: measured.save(path), report=quietly)
    assert path.is_file()
    return measured


def test_every_fp32_engine_is_measured_in_every_fixed_shape(result: Result) -> None:
    shapes = result.models[0].timings[: len(GRID)]

    assert [(t.n_sentences, t.n_tokens) for t in shapes] == [(n, n * length) for n, length in GRID]
    assert all(set(t.samples_ms) == {PYTORCH, "fused.fp32", "portable.fp32"} for t in shapes)
    assert all(len(samples) == PLAN.n_rounds for t in shapes for samples in t.samples_ms.values())


def test_drawn_texts_have_the_drawn_lengths(result: Result) -> None:
    texts = result.models[0].timings[len(GRID)]

    assert texts.n_tokens == draw_lengths(PLAN.n_texts).sum()
    assert texts.n_sentences == PLAN.n_texts
    assert len(texts.samples_ms) == 3


def test_engines_are_held_against_pytorch(result: Result) -> None:
    fidelity = result.models[0].fidelity

    assert set(fidelity) == {"fused.fp32", "portable.fp32"}
    assert all(figures.cosine_min >= 0.999999 for figures in fidelity.values())


def test_a_cold_start_tells_its_peak_memory_not_its_parents(result: Result) -> None:
    peaks = result.models[0].peak_rss_bytes

    assert len(peaks) == 2
    ours = max(peaks["mexma-runtime"])
    assert 20e6 < ours < min(peaks[PYTORCH])


def test_the_report_has_a_row_for_everything(result: Result) -> None:
    text = markdown(result)

    for timing in result.models[0].timings:
        for who in timing.samples_ms:
            assert f"| {timing.workload} | {who} |" in text


def test_a_bundle_of_another_pooling_or_other_weights_is_refused(subject: Subject, result: Result) -> None:
    del result  # has made the bundle
    other = resolve_source(str(write_standin("tiny", subject.bundle.parent / "other", seed=1)))
    for changed, problem in (
        (Subject(name="x", source=subject.source, pooling=Pooling.MEAN, bundle=subject.bundle), "pools cls, not mean"),
        (Subject(name="x", source=other, pooling=None, bundle=subject.bundle), "made from weights"),
    ):
        empty = Result(environment=detect_environment("x"), n_threads=1)
        with pytest.raises(UsageError, match=problem):
            measure(changed, PLAN, empty, save=lambda: None, report=quietly)


def test_an_interrupted_workload_keeps_its_whole_rounds() -> None:
    model = ModelResult(
        name="x", model_id="x", weights_sha256="", n_layers=1, hidden_size=1, pooling="cls", reference="x"
    )
    n_calls = 0

    def interrupt_the_sixth() -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 6:
            raise KeyboardInterrupt

    timing = Timing(workload="x", n_sentences=1, n_tokens=1, baseline="a")
    taken = rounds({"a": interrupt_the_sixth, "b": interrupt_the_sixth}, warmups=0)
    with pytest.raises(KeyboardInterrupt):
        Recorder(model=model, save=lambda: None, report=quietly).keep(timing, taken, 10)

    assert model.timings == [timing]
    assert {who: len(samples) for who, samples in timing.samples_ms.items()} == {"a": 2, "b": 2}
