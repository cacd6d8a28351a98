from __future__ import annotations

import dataclasses

import pytest

from mexma_benchmarks.run.sizes import SIZES, Effort

QUICK = dataclasses.replace(SIZES[Effort.QUICK], share_s=10, min_rounds=4, max_rounds=20)


@pytest.mark.parametrize(("round_s", "n_rounds"), [(1, 10), (0.9, 11), (0.01, 20), (0, 20), (60, 4)])
def test_rounds_fill_their_share_of_time_within_bounds(round_s: float, n_rounds: int) -> None:
    assert QUICK.n_rounds(round_s) == n_rounds


def test_every_effort_has_sizes_that_can_be_described() -> None:
    assert set(SIZES) == set(Effort)
    for sizes in SIZES.values():
        assert list(sizes.described()) == [field.name for field in dataclasses.fields(sizes)]
        assert list(sizes.relative_rates) == sorted(sizes.relative_rates)
