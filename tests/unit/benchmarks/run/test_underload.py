from __future__ import annotations

import pytest

from mexma_benchmarks.run.underload import search_rates


def tried(capacity: float, rates: list[float], n_refinements: int) -> list[float]:
    """The rates that are tried on a subject whose p99 breaks the bound of 10 above `capacity`."""
    seen: list[float] = []

    def p99_at(rate: float) -> float:
        seen.append(rate)
        return 11.0 if rate > capacity else 9.0

    search_rates(p99_at, rates, 10.0, n_refinements=n_refinements)
    return seen


def test_rates_rise_until_the_bound_breaks_and_are_then_halved_in() -> None:
    assert tried(5.5, [1, 2, 4, 8, 16], 3) == [1, 2, 4, 8, 6, 5, 5.5]


def test_a_subject_that_keeps_the_bound_sees_all_rates() -> None:
    assert tried(100, [1, 2, 4], 3) == [1, 2, 4]


def test_a_subject_that_never_keeps_it_is_tried_below_the_lowest_rate() -> None:
    assert tried(0.3, [1, 2], 2) == [1, 0.5, 0.25]


@pytest.mark.parametrize("dies_at", [1, 2, 3])
def test_a_failed_subject_ends_the_search(dies_at: int) -> None:
    n_calls = 0

    def p99_at(rate: float) -> float | None:
        nonlocal n_calls
        n_calls += 1
        return None if n_calls == dies_at else 20.0 if rate >= 2 else 1.0

    search_rates(p99_at, [1, 2, 4], 10.0, n_refinements=5)

    assert n_calls == dies_at
