from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma_benchmarks.timing import PAUSE_S, differences, estimate_median, ratios, relative_spread, rounds

times = st.floats(1e-3, 1e6)


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
    assert differences([2.0, 30.0], [1.0, 10.0]) == [1.0, 20.0]
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


def test_spread_is_the_middle_half_over_the_median() -> None:
    assert relative_spread([1.0, 2.0, 3.0, 4.0, 500.0]) == pytest.approx(2 / 3)
    assert relative_spread([7.0]) == 0.0


class Clock:
    """Time passes only while a call runs, and while it is paused."""

    def __init__(self) -> None:
        self.now = 0.0
        self.paused: list[float] = []
        self.order: list[str] = []

    def call(self, name: str, seconds: float) -> None:
        self.order.append(name)
        self.now += seconds

    def pause(self, seconds: float) -> None:
        self.paused.append(seconds)
        self.now += seconds


def test_rounds_take_turns_in_alternating_order_and_time_the_call_alone() -> None:
    clock = Clock()
    calls = {"a": lambda: clock.call("a", 0.002), "b": lambda: clock.call("b", 0.005)}

    taken = list(islice(rounds(calls, warmups=1, clock=lambda: clock.now, pause=clock.pause), 2))

    assert "".join(clock.order) == "abbaab"  # three rounds, two of them seen
    assert clock.paused == [PAUSE_S] * 6
    assert [list(row) for row in taken] == [["a", "b"]] * 2
    assert [row["a"] for row in taken] == pytest.approx([2.0] * 2)
    assert [row["b"] for row in taken] == pytest.approx([5.0] * 2)
