"""The bars over samples that were never measured."""

from __future__ import annotations

import dataclasses

import pytest

from mexma_benchmarks.gpu_check import bars
from mexma_benchmarks.gpu_check.bars import DRAWN, ONE, SHORT, Measured, flop_a_token
from mexma_benchmarks.gpu_check.lineup import BY_LENGTH, FLASH, FULL, Lineup, lineup_on
from mexma_benchmarks.result.checks import Check, Verdict
from mexma_benchmarks.result.result import Fidelity, ModelResult, SubjectResult, Timing, Workload
from mexma_export.checkpoint.standin import STANDINS
from mexma_export.parity.figures import InvarianceFigures, ParityFigures

LINEUP: Lineup = lineup_on("cuda")
OURS, BASELINE = LINEUP.ours.name, LINEUP.baseline.name
PACKED, GRAPH, COMPILED = "PyTorch fp16, packed", "PyTorch fp16, packed, graph", "PyTorch fp16, compiled"


@pytest.fixture
def model(figures: ParityFigures) -> ModelResult:
    """Every subject listed, its vectors judged, nothing timed."""
    subjects = [LINEUP.baseline, LINEUP.ours, *LINEUP.first, *LINEUP.late]
    return ModelResult(
        name="m",
        model_id="m",
        weights_sha256="0",
        n_layers=1,
        hidden_size=8,
        pooling="cls",
        is_standin=True,
        baseline=BASELINE,
        subjects=[
            SubjectResult(
                name=subject.name,
                role=subject.role,
                adapter=subject.adapter,
                options={},
                fidelity=Fidelity(
                    figures=figures, invariance=InvarianceFigures(cosine_min=0.99995, max_abs_difference=0)
                )
                if "fidelity" in subject.measured
                else None,
            )
            for subject in subjects
        ],
    )


@pytest.fixture
def figures() -> ParityFigures:
    values = {field.name: 1.0 for field in dataclasses.fields(ParityFigures)}
    return ParityFigures(**values | {"n_sentences": 630, "cosine_min": 0.99985, "cosine_mean": 0.9995})  # type: ignore[arg-type]


def add(model: ModelResult, batch: int | None, length: int | None, n_tokens: int, **samples_ms: list[float]) -> Timing:
    """A timing of ids; subjects by the names of this module."""
    n = batch or 100
    workload = Workload(kind="ids", name="w", n_sentences=n, n_tokens=n_tokens, batch=batch, length=length)
    timing = Timing(workload=workload, heat=0, samples_ms={globals()[name]: ms for name, ms in samples_ms.items()})
    model.timings.append(timing)
    return timing


def of(model: ModelResult) -> Measured:
    return Measured(model=model, lineup=LINEUP, sizes=FULL)


def by_name(checks: list[Check]) -> dict[str, Check]:
    found = {check.what: check for check in checks}
    assert len(found) == len(checks)
    return found


def test_ours_is_held_against_each_way_to_run_pytorch_by_the_rounds_ratios(model: ModelResult) -> None:
    add(model, None, None, 1000, OURS=[10, 20, 10], BASELINE=[30, 40, 50], PACKED=[11, 18, 12])
    add(model, 512, 128, 65536, OURS=[10.0] * 3, PACKED=[9.0] * 3)
    add(model, 128, 512, 65536, OURS=[10.0] * 3, PACKED=[10.0] * 3)
    add(model, 1, 32, 32, OURS=[1.0] * 3, BASELINE=[7.0] * 3, GRAPH=[1.1] * 3)

    checks = by_name(list(bars.speed_bars(of(model), [LINEUP.baseline, LINEUP.ours, *LINEUP.first])))

    def found(work: str, other: str) -> tuple[float | None, Verdict]:
        check = checks[f"{work}: {OURS}, times as fast as {other}"]
        return check.measured, check.verdict

    assert found("drawn lengths", BASELINE) == (3.0, Verdict.HOLDS)
    assert found("drawn lengths", PACKED) == (1.1, Verdict.HOLDS)
    assert found("512 sentences of 128 tokens", PACKED) == (0.9, Verdict.FALLS_SHORT)
    assert found("128 sentences of 512 tokens", PACKED) == (1.0, Verdict.HOLDS)
    assert found("one sentence of 32 tokens", GRAPH) == (1.1, Verdict.HOLDS)
    assert found("one sentence of 32 tokens", BASELINE) == (7.0, Verdict.FALLS_SHORT)
    assert not any(what.endswith(f"times as fast as {OURS}") for what in checks)
    assert (
        f"{PACKED}: 12 ms, 83,333 tokens/s; 3 rounds"
        in checks[f"drawn lengths: {OURS}, times as fast as {PACKED}"].note
    )


def test_the_bars_that_gpu_check_has_always_had() -> None:
    values = {
        name: {work: bar and bar.value for work, bar in of_work.items()} for name, of_work in bars.TIMES_AS_FAST.items()
    }
    assert values[BASELINE] == {ONE: 8, DRAWN: 1.3, SHORT: 1.0}
    for other in ("PyTorch fp16, unpadded", COMPILED):
        assert values[other] == {DRAWN: 1.3, SHORT: 1.0}
    assert (bars.MIN_COSINE, bars.MIN_COSINE_MINILM) == (0.9999, 0.9998)


def test_every_subject_of_the_lineup_has_bars_or_is_a_peer() -> None:
    timed = [subject for subject in (LINEUP.baseline, *LINEUP.first, *LINEUP.late) if "ids" in subject.measured]
    for subject in timed:
        assert (subject.name in bars.TIMES_AS_FAST) == (subject.role != "peer")
    assert set(bars.TIMES_AS_FAST) <= {subject.name for subject in timed} | {"PyTorch fp32"}


def test_attention_by_length_is_held_against_the_kernel_that_is_the_faster(model: ModelResult) -> None:
    auto, flash = (f"{OURS}{how}" for how in (BY_LENGTH, FLASH))
    add(model, 128, 512, 65536, OURS=[110.0]).samples_ms.update({auto: [101.0], flash: [100.0]})
    add(model, None, None, 1000, OURS=[10.0]).samples_ms[auto] = [11.0]
    [long] = bars.by_length_bars(of(model))
    assert long.what == f"128 sentences of 512 tokens: {auto}, times as fast as {flash}"
    assert long.measured == pytest.approx(100 / 101)
    assert long.verdict is Verdict.HOLDS
    checks = by_name(list(bars.speed_bars(of(model), LINEUP.first)))
    drawn = checks[f"drawn lengths: {OURS}, times as fast as {auto}"]
    assert drawn.measured == pytest.approx(1.1)
    assert drawn.verdict is Verdict.FALLS_SHORT


def test_latency_is_of_all_calls_and_not_of_the_turns_medians(model: ModelResult) -> None:
    timing = add(model, 1, 32, 32, OURS=[0.9, 0.9])
    timing.calls_ms[OURS] = [[0.9] * 49 + [2.0], [0.9] * 49 + [2.0]]
    checks = by_name(list(bars.latency_bars(of(model))))

    median, tail = (checks[f"one sentence of 32 tokens: {what}"] for what in ("median", "99th percentile over median"))
    assert (median.measured, median.verdict) == (0.9, Verdict.HOLDS)
    assert tail.measured == pytest.approx(2.0 / 0.9)
    assert tail.verdict is Verdict.FALLS_SHORT
    assert "2 ms of 100 calls" in median.note
    assert checks["one sentence of 512 tokens: median"].note == "not measured: it was not reached"


def test_texts_are_held_against_the_ids_of_the_same_texts(model: ModelResult) -> None:
    ids = add(model, None, None, 1000, OURS=[95.0, 97.0])
    texts = dataclasses.replace(ids.workload, kind="texts", name="100 texts")
    model.timings.append(Timing(workload=texts, heat=0, samples_ms={OURS: [100.0]}))
    checks = by_name(list(bars.rate_bars(of(model))))

    check = checks["texts in: rate over that of their ids"]
    assert (check.measured, check.verdict) == (0.96, Verdict.HOLDS)
    assert check.note == "1,000 texts/s, 100 texts"
    assert checks["drawn lengths: rate"].measured == pytest.approx(1000 / 96e-3)


def test_the_share_of_the_card(model: ModelResult) -> None:
    config = STANDINS["mexma"].model
    assert flop_a_token(config) == pytest.approx(604e6, rel=1e-3)
    add(model, 512, 128, 65536, OURS=[100.0])
    check = bars.share_bar(of(model), 700e12, config)
    assert check.measured == pytest.approx(655_360 * flop_a_token(config) / 700e12)
    assert check.verdict is Verdict.HOLDS


def test_vectors_have_bars_for_ours_and_are_reported_for_pytorch(model: ModelResult) -> None:
    subjects = [LINEUP.ours, *LINEUP.first]
    checks = by_name(list(bars.vector_bars(model, subjects, least=bars.MIN_COSINE)))
    assert checks[f"m, {OURS}: least cosine to PyTorch fp32"].verdict is Verdict.FALLS_SHORT
    assert checks[f"m, {OURS}: least cosine of a sentence alone and among others"].verdict is Verdict.HOLDS
    assert checks["m, mexma fused.fp16: least cosine to PyTorch fp32"].verdict is Verdict.FALLS_SHORT
    assert checks[f"m, {PACKED}: least cosine to PyTorch fp32"].verdict is Verdict.REPORTED
    minilm = by_name(list(bars.vector_bars(model, [LINEUP.ours], least=bars.MIN_COSINE_MINILM)))
    assert minilm[f"m, {OURS}: least cosine to PyTorch fp32"].verdict is Verdict.HOLDS
    [mean] = bars.vector_bars(model, [LINEUP.ours], least=1, mean=0.999)
    assert (mean.measured, mean.verdict) == (0.9995, Verdict.HOLDS)


def test_what_is_missing_says_why(model: ModelResult) -> None:
    timing = add(model, None, None, 1000, OURS=[1.0])
    timing.not_offered[PACKED] = "no kernel"
    failed, lacking = model.subject(COMPILED), model.subject("sentence-transformers fp16, flash_attention_2")
    failed.status, failed.reason = "failed", "no answer within 90 s"
    lacking.status, lacking.reason = "unavailable", "not installed: flash_attn"
    checks = by_name(list(bars.speed_bars(of(model), [*LINEUP.first, *LINEUP.late])))

    def row(work: str, other: str) -> tuple[str, Verdict]:
        check = checks[f"{work}: {OURS}, times as fast as {other}"]
        return check.note, check.verdict

    assert row("drawn lengths", PACKED) == (f"not measured: {PACKED}: no kernel", Verdict.FALLS_SHORT)
    assert row("drawn lengths", COMPILED) == (
        f"not measured: {COMPILED}: no answer within 90 s",
        Verdict.FALLS_SHORT,
    )
    assert row("one sentence of 32 tokens", lacking.name) == (
        f"not measured: {lacking.name}: not installed: flash_attn",
        Verdict.NOT_MEASURED,
    )
    assert row("128 sentences of 512 tokens", PACKED) == ("not measured: it was not reached", Verdict.FALLS_SHORT)
