from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mexma_export.graph.input_quantization import Activation, QuantizedInput
from mexma_export.quantize.fake_quantization import quantized
from mexma_export.quantize.grids import integer_grid
from mexma_export.quantize.smoothing_refinement import WEIGHT_SHARE, NoiseModel, refine
from mexma_export.quantize.statistics import InputStatistics, Observer
from mexma_runtime.bundle.manifest import ProductMode
from mexma_runtime.types import Dialect

Floats = NDArray[np.float32]
N_IN, N_OUT, GROUP = 32, 12, 16
INPUTS = {
    "static": QuantizedInput(mode=ProductMode.STATIC, scale=0.05, zero_point=128),
    "token": QuantizedInput(mode=ProductMode.TOKEN, zero_point=128),
    "signed token": QuantizedInput(mode=ProductMode.TOKEN, activation=Activation.INT8),
    "one-sided token": QuantizedInput(mode=ProductMode.TOKEN, zero_point=32),
    "shifted token": QuantizedInput(mode=ProductMode.TOKEN, zero_point=128, shift=np.full(N_IN, 0.5, np.float32)),
    "group": QuantizedInput(mode=ProductMode.GROUP),
}


def case(seed: int) -> tuple[Floats, Floats]:
    """Tokens of which each has a few channels that are larger than the rest, and weights."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((400, N_IN)) * np.exp(random.normal(0, 1, N_IN))
    x[:, 3] *= 30
    return x.astype(np.float32), random.standard_normal((N_IN, N_OUT)).astype(np.float32)


def statistics_of(x: Floats) -> InputStatistics:
    observer = Observer(x.shape[1], np.ones(len(x), np.float32), seed=0)
    observer.add(x)
    return observer.finish()


def noise_model(
    statistics: InputStatistics, weight: Floats, scale: Floats, inputs: dict[Dialect, QuantizedInput], *, bits: int = 8
) -> NoiseModel:
    return NoiseModel(statistics, weight, scale, inputs, grid=integer_grid(bits), group_size=GROUP)


@given(st.integers(0, 1000), st.sampled_from(sorted(INPUTS)), st.integers(0, N_IN - 1))
def test_the_gradient_is_the_difference_of_the_noise(seed: int, name: str, channel: int) -> None:
    x, weight = case(seed)
    scale = np.exp(np.random.default_rng(seed).normal(0, 0.5, N_IN)).astype(np.float32)
    model = noise_model(statistics_of(x), weight, scale, {Dialect.PORTABLE: INPUTS[name]})
    size, ends = 1e-3, []
    for sign in (-1, 1):
        moved = scale.copy()
        moved[channel] *= np.float32(np.exp(sign * size))
        ends.append(model.at(moved))
    (below, gradient_below), (above, gradient_above) = ends
    # Where another number becomes the largest within the step, the slope leaps: it lies between those of the ends.
    least, most = sorted((gradient_below[channel], gradient_above[channel]))
    slack = 0.001 * below
    assert least - slack <= (above - below) / (2 * size) <= most + slack


@pytest.mark.parametrize("name", ["token", "signed token", "group"])
def test_refined_scales_leave_less_error(name: str) -> None:
    x, weight = case(0)
    statistics, how = statistics_of(x), INPUTS[name]
    start = np.ones(N_IN, np.float32)
    model = noise_model(statistics, weight, start, {Dialect.PORTABLE: how, Dialect.FUSED: how})
    refined = refine(model, start, 60)

    def error(scale: Floats) -> float:
        inner = quantized(x / scale, how, GROUP) - x / scale
        return float(np.square(inner @ (weight * scale[:, np.newaxis])).mean())

    assert model.at(refined)[0] < 0.6 * model.at(start)[0]
    assert error(refined) < 0.6 * error(start)


def test_weights_of_fewer_bits_add_more_noise() -> None:
    x, weight = case(0)
    statistics, start = statistics_of(x), np.ones(N_IN, np.float32)
    eight, seven = (
        noise_model(statistics, weight, start, {Dialect.FUSED: INPUTS["token"]}, bits=bits).at(start)[0]
        for bits in (8, 7)
    )
    energy, squares = np.trace(statistics.covariance), np.square(np.abs(weight).max(axis=0)).sum()
    assert seven - eight == pytest.approx(WEIGHT_SHARE * (63**-2 - 127**-2) * squares * energy, rel=1e-3)


def test_no_steps_and_no_noise_change_nothing() -> None:
    x, weight = case(0)
    start = np.full(N_IN, 0.5, np.float32)
    model = noise_model(statistics_of(x), weight, start, {Dialect.FUSED: INPUTS["token"]})
    assert np.array_equal(refine(model, start, 0), start)
    silent = noise_model(statistics_of(x * 0), weight, start, {Dialect.FUSED: INPUTS["token"]})
    assert np.array_equal(refine(silent, start, 5), start)
