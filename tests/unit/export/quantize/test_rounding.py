from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mexma_export.quantize.grids import integer_grid
from mexma_export.quantize.recipe import Rounding
from mexma_export.quantize.rounding import round_weights

Floats = NDArray[np.float32]
HIGHEST = {7: 63, 8: 127}
seeds = st.integers(0, 10_000)


def weights(seed: int, n_in: int, n_out: int) -> Floats:
    random = np.random.default_rng(seed)
    return (random.standard_normal((n_in, n_out)) * np.exp(random.normal(0, 2, n_out))).astype(np.float32)


def covariances(seed: int, n_in: int, rank: int) -> NDArray[np.float64]:
    """Of channels that depend on one another: `rank` hidden causes and a little noise of their own."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((n_in, rank)) * np.exp(random.normal(0, 1, (n_in, 1)))
    result: NDArray[np.float64] = mixing @ mixing.T + 0.01 * np.eye(n_in)
    return result


def loss(weight: Floats, integers: NDArray[np.int8], scales: Floats, covariance: NDArray[np.float64]) -> float:
    """Mean square error of the output, inputs being of `covariance` around zero."""
    difference = weight - integers * scales.astype(np.float64)
    return float(np.einsum("io,ij,jo->", difference, covariance, difference))


@given(seeds, st.integers(1, 40), st.integers(1, 12), st.sampled_from([7, 8]), st.sampled_from(list(Rounding)))
def test_integers_are_in_range_and_scales_positive(
    seed: int, n_in: int, n_out: int, bits: int, rounding: Rounding
) -> None:
    weight = weights(seed, n_in, n_out)
    covariance = covariances(seed, n_in, 3)
    integers, scales = round_weights(weight, grid=integer_grid(bits), rounding=rounding, covariance=covariance)
    assert integers.dtype == np.int8
    assert integers.shape == weight.shape
    assert scales.shape == (n_out,)
    assert scales.dtype == np.float32
    assert np.all(scales > 0)
    assert np.abs(integers.astype(int)).max() <= HIGHEST[bits]


@given(seeds, st.integers(1, 40), st.integers(1, 12), st.sampled_from([7, 8]))
def test_nearest_is_off_by_half_a_scale_at_most_and_exact_at_the_largest(
    seed: int, n_in: int, n_out: int, bits: int
) -> None:
    weight = weights(seed, n_in, n_out)
    integers, scales = round_weights(weight, grid=integer_grid(bits), rounding=Rounding.NEAREST)
    assert np.all(np.abs(integers * scales - weight) <= scales * np.float32(0.50001))
    assert np.array_equal(np.abs(integers.astype(int)).max(axis=0), np.full(n_out, HIGHEST[bits]))
    assert np.array_equal(scales, integer_grid(bits).scales(weight))


@given(seeds, st.integers(24, 64), st.sampled_from([7, 8]))
def test_compensated_halves_the_loss_on_the_covariance_it_was_given(seed: int, n_in: int, bits: int) -> None:
    # Of fewer channels, too few may be left to make up for what one lost: nothing promises a gain then.
    weight, covariance = weights(seed, n_in, 48), covariances(seed, n_in, max(1, n_in // 4))
    nearest = round_weights(weight, grid=integer_grid(bits), rounding=Rounding.NEAREST)
    compensated = round_weights(weight, grid=integer_grid(bits), rounding=Rounding.GPTQ, covariance=covariance)
    assert loss(weight, *compensated, covariance) < 0.5 * loss(weight, *nearest, covariance)


def test_compensated_gains_much_where_channels_go_together() -> None:
    """Over more channels than one block of columns."""
    weight, covariance = weights(0, 300, 32), covariances(0, 300, 30)
    nearest = round_weights(weight, grid=integer_grid(8), rounding=Rounding.NEAREST)
    compensated = round_weights(weight, grid=integer_grid(8), rounding=Rounding.GPTQ, covariance=covariance)
    assert loss(weight, *compensated, covariance) < 0.5 * loss(weight, *nearest, covariance)


def test_independent_channels_are_rounded_to_the_nearest() -> None:
    weight, covariance = weights(1, 20, 8), np.diag(np.linspace(1, 9, 20))
    nearest, _ = round_weights(weight, grid=integer_grid(8), rounding=Rounding.NEAREST)
    compensated, _ = round_weights(weight, grid=integer_grid(8), rounding=Rounding.GPTQ, covariance=covariance)
    assert np.array_equal(nearest, compensated)


@pytest.mark.parametrize("rounding", list(Rounding))
def test_rows_and_columns_of_zeros_stay_zero(rounding: Rounding) -> None:
    weight, covariance = weights(2, 20, 8), covariances(2, 20, 4)
    weight[3], weight[:, 5] = 0, 0
    integers, scales = round_weights(weight, grid=integer_grid(8), rounding=rounding, covariance=covariance)
    assert not integers[:, 5].any()
    assert np.all(scales > 0)
    assert np.all(np.isfinite(scales))
    if rounding is Rounding.NEAREST:
        assert not integers[3].any()


@pytest.mark.parametrize("n_dead", [1, 20])
def test_channels_that_never_vary_give_no_nan(n_dead: int) -> None:
    weight, covariance = weights(4, 20, 8), covariances(4, 20, 4)
    covariance[:n_dead] = covariance[:, :n_dead] = 0
    with np.errstate(all="raise", under="ignore"):
        integers, scales = round_weights(weight, grid=integer_grid(8), rounding=Rounding.GPTQ, covariance=covariance)
    if n_dead == 20:
        assert np.array_equal(integers, round_weights(weight, grid=integer_grid(8), rounding=Rounding.NEAREST)[0])
    assert np.abs(integers[:n_dead] * scales - weight[:n_dead]).max() <= scales.max()
