"""The numbers that weights become, and the scales that they are multiples of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mexma_export.graph.input_quantization import E4M3_HIGHEST, Activation
from mexma_export.quantize.grids import grid_of, integer_grid, stored_scale, to_e4m3
from mexma_export.quantize.recipe import Rounding, load_recipe
from mexma_export.quantize.rounding import round_weights

Floats = NDArray[np.float32]
SMALLEST_NORMAL, SMALLEST = 2.0**-6, 2.0**-9


def all_e4m3() -> Floats:
    """Every number from 0 up that the format has, from its definition: 4 bits of exponent, 3 of mantissa."""
    subnormal = [n * SMALLEST for n in range(8)]
    normal = [2.0**exponent * (1 + n / 8) for exponent in range(-6, 9) for n in range(8)]
    return np.array([*subnormal, *normal[:-1]], np.float32)  # the last one is NaN's


def test_e4m3_has_the_numbers_of_its_definition() -> None:
    numbers = all_e4m3()
    assert numbers[-1] == E4M3_HIGHEST
    assert np.array_equal(to_e4m3(numbers).astype(np.float32), numbers)
    assert np.array_equal(to_e4m3(-numbers).astype(np.float32), -numbers)


@given(st.floats(-1000, 1000, width=32))
def test_e4m3_is_the_nearest_number_or_the_largest(value: float) -> None:
    numbers = np.concatenate([-all_e4m3(), all_e4m3()])
    found = float(to_e4m3(np.array([value], np.float32)).astype(np.float32)[0])
    distance = float(np.abs(numbers - np.float32(value)).min())
    assert abs(found - np.float32(value)) == pytest.approx(distance)


@given(st.lists(st.floats(0, 1e4, width=32), min_size=1, max_size=20))
def test_stored_scales_are_fp16_no_smaller_and_never_zero(scales: list[float]) -> None:
    wanted = np.array(scales, np.float32)
    found = stored_scale(wanted, np.dtype(np.float16))
    assert np.array_equal(found.astype(np.float16).astype(np.float32), found)
    assert np.all(found >= wanted)
    assert np.all(found > 0)
    assert np.all(found <= wanted * np.float32(1.001) + np.finfo(np.float16).smallest_subnormal)


@given(st.integers(0, 1000), st.sampled_from([Activation.INT8, Activation.E4M3]), st.sampled_from(list(Rounding)))
def test_weights_for_tensorrt_are_numbers_of_the_grid_times_a_scale_in_fp16(
    seed: int, activation: Activation, rounding: Rounding
) -> None:
    random = np.random.default_rng(seed)
    weight = (random.standard_normal((24, 6)) * np.exp(random.normal(-6, 4, 6))).astype(np.float32)
    grid = grid_of(load_recipe("tensorrt"), activation)
    covariance = np.cov(random.standard_normal((24, 100)))
    rounded, scales = round_weights(weight, grid=grid, rounding=rounding, covariance=covariance)
    assert rounded.dtype == grid.dtype == activation.dtype
    assert np.array_equal(scales.astype(np.float16).astype(np.float32), scales)
    assert np.abs(rounded.astype(np.float32)).max() <= grid.highest
    if rounding is Rounding.NEAREST:
        units = weight / scales
        step = 0.5 if activation is Activation.INT8 else np.maximum(np.abs(units) / 16, SMALLEST / 2)
        assert np.all(np.abs(rounded.astype(np.float32) - units) <= step * 1.0001)


def test_e4m3_of_weights_loses_less_when_compensated() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((400, 8)) @ random.standard_normal((8, 32)) + 0.05 * random.standard_normal((400, 32))
    weight = random.standard_normal((32, 16)).astype(np.float32)
    grid = grid_of(load_recipe("tensorrt"), Activation.E4M3)
    losses = {}
    for rounding in Rounding:
        rounded, scales = round_weights(weight, grid=grid, rounding=rounding, covariance=np.cov(x.T))
        losses[rounding] = float(np.square(x @ (rounded.astype(np.float32) * scales - weight)).mean())
    assert losses[Rounding.GPTQ] < 0.7 * losses[Rounding.NEAREST]


@pytest.mark.parametrize(("bits", "highest"), [(8, 127), (7, 63)])
def test_integers_have_as_many_below_zero_as_above(bits: int, highest: int) -> None:
    grid = integer_grid(bits)
    found = grid.nearest(np.array([-1e6, -0.6, 0.5, 1.5, 1e6], np.float32))
    assert list(found) == [-highest, -1, 0, 2, highest]
