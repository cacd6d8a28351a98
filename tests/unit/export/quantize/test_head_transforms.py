from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mexma_export.quantize.head_transforms import head_transform, transformed
from mexma_export.quantize.statistics import InputStatistics

Observe = Callable[..., InputStatistics]
Floats = NDArray[np.float32]


def drawn(seed: int, n_heads: int, size: int) -> tuple[Floats, Floats]:
    """Tokens whose channels go together within a head and differ in size, and a weight whose rows do."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((400, n_heads, 1, size)) @ (random.standard_normal((n_heads, size, size)) / size**0.5)
    sizes, rows = np.exp(random.standard_normal((2, n_heads * size)))
    weight = random.standard_normal((n_heads * size, 40)) * rows[:, np.newaxis]
    return (x.reshape(400, -1) * sizes).astype(np.float32), weight.astype(np.float32)


def noise(x: Floats, weight: Floats) -> float:
    """What noise in proportion to all of x adds to the product."""
    return float(np.square(x).sum() * np.square(weight).sum())


@given(seed=st.integers(0, 1000), n_heads=st.integers(1, 4), size=st.sampled_from([1, 2, 8, 12, 15, 64]))
def test_the_product_stays_what_it_is(observe: Observe, seed: int, n_heads: int, size: int) -> None:
    x, weight = drawn(seed, n_heads, size)
    transform = head_transform(observe(x), weight, n_heads)
    expected = x @ weight
    assert np.abs(transform.done(x) @ transform.undone(weight) - expected).max() < 1e-4 * np.abs(expected).max()


@given(seed=st.integers(0, 1000), size=st.sampled_from([2, 8, 12, 64]))
def test_it_lets_noise_add_less_than_any_scales_of_channels_would(observe: Observe, seed: int, size: int) -> None:
    x, weight = drawn(seed, 1, size)
    statistics = observe(x)
    x = statistics.sample * np.sqrt(statistics.sample_share)[:, np.newaxis]
    transform = head_transform(statistics, weight, 1)
    scale = np.sqrt(np.linalg.norm(x, axis=0) / np.linalg.norm(weight, axis=1))
    found = noise(transform.done(x), transform.undone(weight))
    assert found <= 1.001 * noise(x / scale, weight * scale[:, np.newaxis])
    assert found <= 1.001 * noise(x, weight)


def test_all_channels_of_a_head_are_of_one_size(observe: Observe) -> None:
    x, weight = drawn(1, 3, 64)
    statistics = observe(x)
    new = transformed(statistics, head_transform(statistics, weight, 3))
    squares = (statistics.sample_share @ np.square(new.sample)).reshape(3, 64)
    assert np.allclose(squares / squares.mean(axis=1, keepdims=True), 1, atol=1e-3)


def test_statistics_are_those_of_the_transformed_input(observe: Observe) -> None:
    x, weight = drawn(2, 3, 8)
    statistics = observe(x)
    transform = head_transform(statistics, weight, 3)
    new, expected = transformed(statistics, transform), observe(transform.done(x))
    assert np.allclose(new.covariance, expected.covariance, atol=1e-5 * np.abs(expected.covariance).max())
    assert np.allclose(new.sample, transform.done(statistics.sample))
    assert np.all((new.lowest <= new.sample) & (new.sample <= new.highest))
    assert np.array_equal(new.sample_weights, statistics.sample_weights)


@pytest.mark.parametrize("dead", [slice(0, 8), slice(3, 4), slice(None)])
@pytest.mark.parametrize("which", [0, 1])
def test_dead_channels_and_heads_do_no_harm(observe: Observe, dead: slice, which: int) -> None:
    pair = drawn(3, 3, 8)
    (pair[0].T, pair[1])[which][dead] = 0
    x, weight = pair
    transform = head_transform(observe(x), weight, 3)
    assert np.isfinite(transform.matrices).all()
    assert np.isfinite(transform.inverses).all()
    found, expected = transform.done(x) @ transform.undone(weight), x @ weight
    assert np.allclose(found, expected, atol=1e-4 * max(1.0, float(np.abs(expected).max())))
