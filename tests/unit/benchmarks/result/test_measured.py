from __future__ import annotations

import pytest

from mexma_benchmarks.result.measured import (
    MIN_REQUESTS_P999,
    fidelity_model,
    highest_rate,
    largest_model,
    load_points,
    series,
)
from mexma_benchmarks.result.result import LoadRun, ModelResult, Result, Timing, Workload

WORKLOAD = Workload(kind="ids", name="2 x 5 tokens", n_sentences=2, n_tokens=10, batch=2, length=5)


def run(subject: str, rate: float, latencies_ms: list[float], n_arrivals: int | None = None) -> LoadRun:
    n = len(latencies_ms) if n_arrivals is None else n_arrivals
    return LoadRun(subject=subject, rate_per_s=rate, duration_s=1, seed=0, n_arrivals=n, latencies_ms=latencies_ms)


@pytest.fixture
def model(small_result: Result) -> ModelResult:
    return small_result.models[0]


def test_ratios_are_made_within_a_heat(model: ModelResult) -> None:
    first = Timing(workload=WORKLOAD, heat=0, samples_ms={"theirs": [10.0, 10.0], "a": [5.0, 2.0]})
    second = Timing(workload=WORKLOAD, heat=1, samples_ms={"theirs": [40.0, 40.0], "b": [20.0, 10.0]})
    model.timings += [first, second]

    theirs, a, b = series(model)

    assert [one.subject for one in (theirs, a, b)] == ["theirs", "a", "b"]
    assert theirs.samples_ms == [10.0, 10.0, 40.0, 40.0]
    assert theirs.speedups == []
    assert a.speedups == [2.0, 5.0]
    assert b.speedups == [2.0, 4.0]
    assert a.ms.median == 3.5
    assert a.tokens_per_s == pytest.approx(10 / 3.5e-3)
    assert a.sentences_per_s == pytest.approx(2 / 3.5e-3)


def test_a_subject_that_failed_midway_keeps_the_rounds_it_shared(model: ModelResult) -> None:
    model.timings.append(Timing(workload=WORKLOAD, heat=0, samples_ms={"theirs": [8.0, 6.0, 4.0], "ours": [2.0, 3.0]}))

    _, ours = series(model)

    assert ours.speedups == [4.0, 2.0]


def test_a_subject_without_its_baseline_has_times_and_no_ratio(model: ModelResult) -> None:
    model.timings.append(Timing(workload=WORKLOAD, heat=0, samples_ms={"ours": [2.0], "theirs": []}))

    (ours,) = series(model)

    assert ours.ms.median == 2.0
    assert ours.speedup is None


def test_percentiles_are_of_requests_that_were_made(model: ModelResult) -> None:
    model.load_runs += [
        run("ours", 20, [float(ms) for ms in range(1, 101)]),
        run("ours", 5, [1.0]),
        run("ours", 9, []),
        run("theirs", 5, [7.0] * MIN_REQUESTS_P999),
    ]

    theirs, slow, fast = load_points(model)

    assert (theirs.subject, theirs.p999) == ("theirs", 7.0)
    assert (slow.rate_per_s, slow.p99, slow.n_requests) == (5, 1.0, 1)
    assert (fast.p50, fast.p90, fast.p99, fast.p999) == (50.0, 90.0, 99.0, None)


def test_the_highest_rate_is_the_highest_that_kept_the_bound_to_its_end(model: ModelResult) -> None:
    model.load_runs += [
        run("ours", 1, [10.0] * 5),
        run("ours", 2, [20.0] * 5),
        run("ours", 4, [21.0] * 5),
        run("ours", 8, [1.0] * 5, n_arrivals=6),
    ]
    points = load_points(model)

    assert highest_rate(points, 20.0) == 2
    assert highest_rate(points, 9.0) is None
    assert [point.was_given_up for point in points] == [False, False, False, True]


def test_speed_is_of_the_largest_and_fidelity_of_trained_weights(full_result: Result) -> None:
    standin, trained = full_result.models

    assert largest_model(full_result.models) is standin
    assert fidelity_model(full_result.models) is trained
    assert fidelity_model([standin]) is standin
    assert largest_model([]) is None
