from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mexma_export.graph.input_quantization import Activation, QuantizedInput
from mexma_export.quantize.fake_quantization import quantized, static_parameters
from mexma_runtime.bundle.manifest import ProductMode

Floats = NDArray[np.float32]
GROUP = 16
TOKEN = QuantizedInput(mode=ProductMode.TOKEN, zero_point=128)
OF_GROUPS = QuantizedInput(mode=ProductMode.GROUP)
seeds = st.integers(0, 10_000)
activations = st.sampled_from([Activation.UINT8, Activation.INT8])
centres = st.floats(-3, 3)


def values(seed: int, n_tokens: int = 12, n_channels: int = 32, centre: float = 0) -> Floats:
    random = np.random.default_rng(seed)
    sizes = np.exp(random.normal(0, 1.5, (n_tokens, 1)))
    return ((random.standard_normal((n_tokens, n_channels)) + centre) * sizes).astype(np.float32)


def static(z: Floats, activation: Activation, clip_ratio: float = 1) -> QuantizedInput:
    scale, zero_point = static_parameters(z, activation, clip_ratio)
    return QuantizedInput(mode=ProductMode.STATIC, activation=activation, scale=scale, zero_point=zero_point)


@given(seeds, centres, activations, st.floats(0.1, 1))
def test_static_is_off_by_half_a_scale_inside_the_range_and_clips_outside(
    seed: int, centre: float, activation: Activation, clip_ratio: float
) -> None:
    z = values(seed, centre=centre)
    how = static(z, activation, clip_ratio)
    assert how.scale is not None
    assert how.scale > 0
    lowest, highest = (
        np.float32((end - how.zero_point) * how.scale) for end in (activation.lowest, activation.highest)
    )
    found = quantized(z, how, GROUP)
    slack = np.float32(1e-5) * np.abs(z)
    assert np.all(np.abs(found - np.clip(z, lowest, highest)) <= np.float32(0.5) * np.float32(how.scale) + slack)
    assert np.all(quantized(np.zeros_like(z), how, GROUP) == 0)


@given(seeds, centres, activations)
def test_the_whole_range_is_held(seed: int, centre: float, activation: Activation) -> None:
    z = values(seed, centre=centre)
    how = static(z, activation)
    assert how.scale is not None
    assert np.abs(quantized(z, how, GROUP) - z).max() <= 1.001 * how.scale
    if activation is Activation.INT8:
        assert how.zero_point == 0
    else:
        assert 0 <= how.zero_point <= 255


@given(seeds, centres, activations)
def test_a_token_is_off_by_half_of_its_own_scale(seed: int, centre: float, activation: Activation) -> None:
    z = values(seed, centre=centre)
    how = dataclasses.replace(TOKEN, activation=activation, zero_point=activation.middle)
    scale = np.abs(z).max(axis=1, keepdims=True) / 127
    assert np.all(np.abs(quantized(z, how, GROUP) - z) <= 0.5001 * scale)


@given(seeds, st.sampled_from([64, 32, 16, 8]))
def test_a_token_that_is_nearly_positive_has_finer_steps(seed: int, zero_point: int) -> None:
    z = np.maximum(values(seed), np.float32(-0.17))
    highest = 255 - zero_point
    how = dataclasses.replace(TOKEN, zero_point=zero_point, least_reach=0.17 * highest / zero_point)
    scale = np.maximum(z.max(axis=1, keepdims=True) / highest, 0.17 / zero_point)
    assert np.all(np.abs(quantized(z, how, GROUP) - z) <= 0.5001 * scale)


@given(seeds, centres)
def test_groups_are_off_by_half_of_their_own_scale(seed: int, centre: float) -> None:
    z = values(seed, centre=centre)
    scale = np.repeat(np.abs(z).reshape(len(z), -1, GROUP).max(axis=2) / 127, GROUP, axis=1)
    assert np.all(np.abs(quantized(z, OF_GROUPS, GROUP) - z) <= 0.5001 * scale)


@given(seeds, st.sampled_from(list(ProductMode)), st.integers(0, 11))
def test_a_token_does_not_depend_on_the_others(seed: int, mode: ProductMode, row: int) -> None:
    z = values(seed)
    how = dataclasses.replace(TOKEN, mode=mode, scale=0.05)
    together = quantized(z, how, GROUP)
    assert np.array_equal(quantized(z[[row]], how, GROUP)[0], together[row])
    others = z * np.float32(1000)
    others[row] = z[row]
    assert np.array_equal(quantized(others, how, GROUP)[row], together[row])


@given(seeds, st.integers(0, 1))
def test_a_group_does_not_depend_on_the_others(seed: int, group: int) -> None:
    z = values(seed)
    inside = slice(group * GROUP, (group + 1) * GROUP)
    others = z * np.float32(1000)
    others[:, inside] = z[:, inside]
    found = quantized(others, OF_GROUPS, GROUP)
    assert np.array_equal(found[:, inside], quantized(z, OF_GROUPS, GROUP)[:, inside])


@pytest.mark.parametrize("value", [0.0, 1e-30, 7.0, -7.0])
def test_zeros_and_constants_give_no_nan(value: float) -> None:
    z = np.full((3, 32), value, np.float32)
    for how in (TOKEN, OF_GROUPS, static(z, Activation.UINT8), static(z, Activation.INT8)):
        with np.errstate(divide="raise", invalid="raise", over="raise"):
            found = quantized(z, how, GROUP)
        assert found == pytest.approx(z, rel=1e-2, abs=1e-12)


def test_float_is_left_alone() -> None:
    z = values(0)
    assert quantized(z, QuantizedInput(mode=ProductMode.FLOAT), GROUP) is z


@given(seeds, centres, st.sampled_from([ProductMode.STATIC, ProductMode.TOKEN]))
def test_e4m3_is_off_by_a_sixteenth_of_the_number_itself(seed: int, centre: float, mode: ProductMode) -> None:
    z = values(seed, centre=centre)
    how = static(z, Activation.E4M3)
    if mode is ProductMode.TOKEN:
        how = QuantizedInput(mode=mode, activation=Activation.E4M3)
    found = quantized(z, how, GROUP)
    largest = np.abs(z).max(axis=None if mode is ProductMode.STATIC else 1, keepdims=True)
    # Below its smallest normal number, 2^-6 of up to 448, it has equal steps of 2^-9.
    allowed = np.maximum(np.abs(z) * 2.0**-4, largest / 448 * 2.0**-10) * 1.001
    assert np.all(np.abs(found - z) <= allowed)
    assert how.zero_point == 0
