from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mexma_export.quantize.channel_order import arranged
from mexma_export.quantize.statistics import InputStatistics

Observe = Callable[..., InputStatistics]
Floats = NDArray[np.float32]


def order_of(statistics: InputStatistics, weight: Floats, size: int) -> NDArray[np.int64]:
    return arranged(statistics.sample, statistics.sample_share, weight, size)


def noise(statistics: InputStatistics, weight: Floats, order: NDArray[np.int64], size: int) -> float:
    """What rounding in groups of `size` adds, but for a factor, to inputs smoothed as `arranged` has them."""
    gain = np.square(weight).sum(axis=1)
    smoothing = np.sqrt(np.abs(statistics.sample).max(axis=0) / np.sqrt(gain))
    squares = np.square(statistics.sample / smoothing)[:, order].reshape(len(statistics.sample), -1, size)
    gains = (gain * np.square(smoothing))[order].reshape(-1, size).sum(axis=1)
    return float(statistics.sample_share @ squares.max(axis=2) @ gains)


@given(seed=st.integers(0, 1000), size=st.sampled_from([4, 8, 12, 24]))
def test_an_order_of_all_channels_that_adds_no_more_noise(observe: Observe, seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    x = (random.standard_normal((200, 24)) * np.exp(random.standard_normal((200, 24)))).astype(np.float32)
    weight = random.standard_normal((24, 5)).astype(np.float32)
    statistics = observe(x)
    order = order_of(statistics, weight, size)
    assert sorted(order) == list(range(24))
    assert noise(statistics, weight, order, size) <= 1.0001 * noise(statistics, weight, np.arange(24), size)
    assert np.array_equal(order, order_of(statistics, weight, size))


def test_channels_that_are_large_together_share_a_group(observe: Observe) -> None:
    """Every third channel is large in the same third of the tokens."""
    random = np.random.default_rng(0)
    kind = np.arange(48) % 3
    is_large = kind == random.integers(3, size=(600, 1))
    x = random.uniform(0.5, 1, (600, 48)) * np.where(is_large, 20, 0.1)
    order = order_of(observe(x.astype(np.float32)), np.ones((48, 4), np.float32), 16)
    assert all(len(set(kinds)) == 1 for kinds in kind[order].reshape(3, 16))


@pytest.mark.parametrize("size", [1, 24])
def test_with_one_channel_a_group_or_one_group_order_is_nothing(observe: Observe, size: int) -> None:
    x = np.random.default_rng(0).standard_normal((100, 24)).astype(np.float32)
    assert sorted(order_of(observe(x), np.ones((24, 4), np.float32), size)) == list(range(24))


@pytest.mark.parametrize("which", ["input", "weight"])
def test_dead_channels_do_no_harm(observe: Observe, which: str) -> None:
    x, weight = np.random.default_rng(0).standard_normal((100, 24)).astype(np.float32), np.ones((24, 4), np.float32)
    (x.T if which == "input" else weight)[::5] = 0
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        assert sorted(order_of(observe(x), weight, 8)) == list(range(24))
