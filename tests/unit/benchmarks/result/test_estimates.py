from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma_benchmarks.result import estimates
from mexma_benchmarks.result.estimates import (
    estimate_median,
    estimate_quotient,
    pareto_front,
    quantile,
    ratios,
    relative_spread,
)

times = st.floats(1e-3, 1e6)
points = st.tuples(st.integers(0, 8), st.integers(0, 8)).map(lambda point: (float(point[0]), float(point[1])))


@pytest.mark.parametrize(
    ("n", "k", "coverage"),
    [
        (1, 1, 0.0),
        (2, 1, 0.5),
        (5, 1, 0.9375),  # 1 - 2 / 32: too few for 95 %, so the whole range
        (6, 1, 0.96875),
        (8, 1, 0.9921875),
        (9, 2, 0.9609375),  # 1 - 2 (1 + 9) / 512
        (10, 2, 0.978515625),
        (20, 6, 0.958610535),  # the tables of the sign test
        (100, 40, 0.964799800),
    ],
)
def test_interval_of_a_median_is_the_known_order_statistics(n: int, k: int, coverage: float) -> None:
    shuffled = np.random.default_rng(n).permutation(np.arange(1.0, n + 1)).tolist()

    estimate = estimate_median(shuffled)

    assert (estimate.low, estimate.high) == (k, n + 1 - k)
    assert estimate.median == (n + 1) / 2
    assert estimate.coverage == pytest.approx(coverage, abs=1e-9)
    assert estimate.n_samples == n


def test_an_interval_covers_the_median_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).exponential(size=(2000, 12))
    estimates = [estimate_median(row.tolist()) for row in draws]

    covered = np.mean([e.low <= np.log(2) <= e.high for e in estimates])

    assert covered == pytest.approx(estimates[0].coverage, abs=0.02)


@given(st.lists(times, min_size=1, max_size=2000))
def test_a_median_lies_in_its_interval(samples: list[float]) -> None:
    estimate = estimate_median(samples)

    assert min(samples) <= estimate.low <= estimate.median <= estimate.high <= max(samples)


def test_no_samples_have_no_median() -> None:
    with pytest.raises(ValueError, match="at least one"):
        estimate_median([])


def test_pairs_are_of_one_round() -> None:
    assert ratios([2.0, 30.0], [1.0, 10.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


def test_spread_is_the_middle_half_over_the_median() -> None:
    assert relative_spread([1.0, 2.0, 3.0, 4.0, 500.0]) == pytest.approx(2 / 3)
    assert relative_spread([7.0]) == 0.0


def counted_rank(m: int, n: int, confidence: float) -> tuple[int, float]:
    """Rank and coverage from every order in which m and n samples can fall."""
    statistics = [
        sum(position - rank for rank, position in enumerate(order)) for order in combinations(range(m + n), m)
    ]
    k = 1
    while 2 * sum(u < k + 1 for u in statistics) / len(statistics) <= 1 - confidence:
        k += 1
    return k, max(0.0, 1 - 2 * sum(u < k for u in statistics) / len(statistics))


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 4), (3, 3), (4, 4), (5, 5), (5, 9), (7, 6)])
def test_interval_of_a_quotient_lies_at_the_ranks_of_all_possible_orders(m: int, n: int, confidence: float) -> None:
    random = np.random.default_rng(m + n)
    a, b = random.uniform(1, 2, m).tolist(), random.uniform(1, 2, n).tolist()
    k, coverage = counted_rank(m, n, confidence)
    quotients = sorted(x / y for x in a for y in b)

    estimate = estimate_quotient(a, b, confidence)

    assert (estimate.low, estimate.high) == (quotients[k - 1], quotients[-k])
    assert estimate.coverage == pytest.approx(coverage)
    assert estimate.median == pytest.approx(np.median(quotients))
    assert estimate.n_samples == min(m, n)


def test_five_rounds_each_are_the_least_for_99_percent() -> None:
    # The tables of Mann and Whitney: 2 / 252 and 2 / 126.
    assert estimate_quotient([1.0] * 5, [1.0] * 5).coverage == pytest.approx(1 - 2 / 252)
    assert estimate_quotient([1.0] * 5, [1.0] * 4).coverage == pytest.approx(1 - 2 / 126)


def test_counted_and_normal_ranks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    estimates._mann_whitney_rank.cache_clear()
    counted = estimates._mann_whitney_rank(50, 50, 0.99)
    monkeypatch.setattr(estimates, "MAX_COUNTED_PAIRS", 0)
    estimates._mann_whitney_rank.cache_clear()
    normal = estimates._mann_whitney_rank(50, 50, 0.99)
    estimates._mann_whitney_rank.cache_clear()

    assert normal[0] == pytest.approx(counted[0], rel=0.01)
    assert normal[1] == pytest.approx(counted[1], abs=5e-4)


@pytest.mark.parametrize("n", [6, 12])
def test_an_interval_covers_the_quotient_as_often_as_it_says(n: int) -> None:
    random = np.random.default_rng(0)
    covered, coverage = [], 0.0
    for _ in range(1500):
        a, b = 1.1 * random.lognormal(0, 0.3, n), random.lognormal(0, 0.3, n)
        estimate = estimate_quotient(a.tolist(), b.tolist(), 0.9)
        covered.append(estimate.low <= 1.1 <= estimate.high)
        coverage = estimate.coverage

    assert coverage >= 0.9
    assert np.mean(covered) == pytest.approx(coverage, abs=0.025)


@given(st.lists(times, min_size=1, max_size=30), st.lists(times, min_size=1, max_size=30))
def test_the_inverse_quotient_has_the_inverse_interval(a: list[float], b: list[float]) -> None:
    there, back = estimate_quotient(a, b), estimate_quotient(b, a)

    assert there.low <= there.median <= there.high
    assert (there.low, there.high) == pytest.approx((1 / back.high, 1 / back.low))


@pytest.mark.parametrize(("a", "b"), [([], [1.0]), ([1.0], [])])
def test_no_samples_have_no_quotient(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        estimate_quotient(a, b)


@given(st.lists(times, min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99, 0.999]))
def test_a_quantile_is_the_smallest_sample_that_enough_are_within(samples: list[float], share: float) -> None:
    needed = math.ceil(round(share * len(samples), 9))

    assert quantile(samples, share) == sorted(samples)[needed - 1]


@given(st.lists(points, max_size=12))
def test_the_pareto_front_is_what_nothing_dominates(them: list[tuple[float, float]]) -> None:
    def is_beaten(one: tuple[float, float]) -> bool:
        return any(other[0] >= one[0] and other[1] >= one[1] and other != one for other in them)

    front = pareto_front(them)

    assert sorted(front) == [i for i, one in enumerate(them) if not is_beaten(one)]
    assert [them[i][0] for i in front] == sorted(them[i][0] for i in front)
