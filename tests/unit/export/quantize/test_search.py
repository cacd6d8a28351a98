from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from mexma_export.graph.input_quantization import E4M3_HIGHEST, Activation
from mexma_export.quantize.fake_quantization import quantized
from mexma_export.quantize.recipe import Recipe, Rounding, load_recipe
from mexma_export.quantize.search import GroupResult, quantize_group
from mexma_export.quantize.statistics import InputStatistics, Observer
from mexma_runtime.bundle.manifest import ProductMode
from mexma_runtime.types import PADDED_DIALECTS, Dialect

Floats = NDArray[np.float32]
FEW = dataclasses.replace(load_recipe("fast"), smoothquant_alphas=(0.5, 0.8), clip_ratios=(1.0, 0.8), group_size=32)
PLAIN = dataclasses.replace(
    FEW,
    smoothquant_alphas=(),
    smoothing_refinement_steps=0,
    clip_ratios=(1.0,),
    rounding=Rounding.NEAREST,
    correct_bias=False,
    channel_shift=(),
)
STATIC = dict.fromkeys(Dialect, ProductMode.STATIC)
TOKEN = dict.fromkeys(Dialect, ProductMode.TOKEN)
GROUP = {Dialect.PORTABLE: ProductMode.GROUP, Dialect.FUSED: ProductMode.TOKEN}


def tokens(*, outliers: bool = True, one_sided: bool = False) -> Floats:
    """Inputs with two channels far from zero and thirty times as wide, as LayerNorms give; or as after GELU."""
    random = np.random.default_rng(0)
    x = random.standard_normal((600, 64))
    if outliers:
        x[:, [3, 40]] = 30 * x[:, [3, 40]] + 50
    if one_sided:
        x = np.where(x > 0, np.square(x), -0.1)
    return x.astype(np.float32)


def statistics_of(x: Floats) -> InputStatistics:
    observer = Observer(x.shape[1], np.ones(len(x), np.float32), seed=0)
    observer.add(x)
    return observer.finish()


def layer(n_in: int = 64) -> tuple[Floats, Floats]:
    random = np.random.default_rng(1)
    return (
        random.standard_normal((n_in, 24)).astype(np.float32) / np.float32(8),
        random.standard_normal(24).astype(np.float32),
    )


def quantize(
    x: Floats,
    weight: Floats,
    bias: Floats,
    *,
    modes: dict[Dialect, ProductMode] = STATIC,
    recipe: Recipe = FEW,
    activation: Activation = Activation.UINT8,
) -> GroupResult:
    return quantize_group(
        statistics_of(x),
        weight,
        bias,
        modes=modes,
        recipe=recipe,
        activation=activation,
        shiftable=recipe.channel_shift,
    )


def computed(x: Floats, result: GroupResult, dialect: Dialect) -> Floats:
    """What an engine gives for `x`: float32 `(tokens, out)`."""
    how = result.inputs[dialect]
    z = x / result.smoothing.scale
    if how.shift is not None:
        z = z + how.shift
    y: Floats = quantized(z, how, 32) @ (result.weight.astype(np.float32) * result.weight_scale) + result.bias[dialect]
    return y


def share(difference: Floats, y: Floats, weights: Floats) -> float:
    """Mean square as a share of the variance, tokens counting as `weights` say."""
    centred = y - np.average(y, axis=0, weights=weights)
    return float(np.average(np.square(difference).sum(axis=1), weights=weights)) / float(
        np.average(np.square(centred).sum(axis=1), weights=weights)
    )


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("modes", [STATIC, TOKEN, GROUP], ids=["static", "token", "group"])
@pytest.mark.parametrize("bits", [7, 8])
def test_the_errors_told_are_those_of_what_is_handed_out(
    modes: dict[Dialect, ProductMode], activation: Activation, bits: int
) -> None:
    x, (weight, bias) = tokens(), layer()
    recipe = dataclasses.replace(FEW, weight_bits=bits)
    result = quantize(x, weight, bias, modes=modes, recipe=recipe, activation=activation)
    sampled = statistics_of(x)
    exact = sampled.sample @ weight + bias
    highest = E4M3_HIGHEST if activation is Activation.E4M3 else 2 ** (bits - 1) - 1
    assert np.abs(result.weight.astype(int)).max() == highest
    for dialect in PADDED_DIALECTS:
        difference = computed(sampled.sample, result, dialect) - exact
        found = share(difference, exact, sampled.sample_weights)
        assert result.errors[dialect].final == pytest.approx(found, rel=1e-2)
        assert found < 1e-2


@pytest.mark.parametrize("modes", [STATIC, TOKEN, GROUP], ids=["static", "token", "group"])
def test_each_step_gains(modes: dict[Dialect, ProductMode]) -> None:
    weight, bias = layer()
    result = quantize(tokens(), weight, bias, modes=modes)
    assert result.smoothing.alpha in FEW.smoothquant_alphas
    for errors in result.errors.values():
        assert errors.final < errors.smoothed < errors.plain / 4


def test_a_plain_recipe_is_plain() -> None:
    weight, bias = layer()
    result = quantize(tokens(), weight, bias, recipe=PLAIN)
    assert result.smoothing.alpha is None
    assert np.all(result.smoothing.scale == 1)
    for dialect in PADDED_DIALECTS:
        assert result.inputs[dialect].shift is None
        assert np.array_equal(result.bias[dialect], bias)
        errors = result.errors[dialect]
        assert errors.plain == pytest.approx(errors.final) == pytest.approx(errors.smoothed)


def test_smoothing_is_chosen_by_the_error_and_may_be_none() -> None:
    """Channels all alike, weights of very different rows: a smoothing could only harm."""
    x = tokens(outliers=False)
    weight, bias = layer()
    weight[::2] *= np.float32(100)
    harmful = dataclasses.replace(PLAIN, smoothquant_alphas=(0.0,))
    assert quantize(x, weight, bias, recipe=harmful).smoothing.alpha is None
    assert (
        quantize(tokens(), *layer(), recipe=dataclasses.replace(PLAIN, smoothquant_alphas=(0.5,))).smoothing.alpha
        == 0.5
    )


def test_bias_correction_takes_out_the_mean_error() -> None:
    x, (weight, bias) = tokens(one_sided=True, outliers=False), layer()
    sampled = statistics_of(x)
    exact = sampled.sample @ weight + bias
    means = {}
    for correct in (True, False):
        recipe = dataclasses.replace(PLAIN, clip_ratios=(0.3,), smoothquant_alphas=(0.5,), correct_bias=correct)
        result = quantize(x, weight, bias, recipe=recipe)
        difference = computed(sampled.sample, result, Dialect.FUSED) - exact
        means[correct] = np.abs(np.average(difference, axis=0, weights=sampled.sample_weights)).max()
    assert means[True] < 1e-5
    assert means[False] > 1e-3


def test_channels_are_moved_around_zero_where_the_dialect_may() -> None:
    x, (weight, bias) = tokens(), layer()
    recipe = dataclasses.replace(FEW, channel_shift=(Dialect.PORTABLE,))
    result = quantize(x, weight, bias, recipe=recipe, modes=GROUP)
    shift = result.inputs[Dialect.PORTABLE].shift
    assert shift is not None
    moved = x / result.smoothing.scale + shift
    assert np.abs(moved.min(axis=0) + moved.max(axis=0)).max() < 1e-3
    assert result.inputs[Dialect.FUSED].shift is None


def test_the_zero_of_scales_a_token_follows_the_range() -> None:
    x, (weight, bias) = tokens(outliers=False, one_sided=True), layer()
    result = quantize(x, weight, bias, modes=TOKEN)
    for how in result.inputs.values():
        assert 0 < how.zero_point < 128
        assert how.least_reach * how.unit_scale * how.zero_point == pytest.approx(
            -(x / result.smoothing.scale).min(), rel=1e-5
        )
    assert all(how.zero_point == 128 for how in quantize(tokens(), weight, bias, modes=TOKEN).inputs.values())


@pytest.mark.parametrize("modes", [STATIC, TOKEN], ids=["static", "token"])
def test_int8_activations_are_symmetric(modes: dict[Dialect, ProductMode]) -> None:
    weight, bias = layer()
    result = quantize(tokens(one_sided=True), weight, bias, modes=modes, activation=Activation.INT8)
    for how in result.inputs.values():
        assert (how.activation, how.zero_point) == (Activation.INT8, 0)


@pytest.mark.parametrize("modes", [STATIC, TOKEN, GROUP], ids=["static", "token", "group"])
@pytest.mark.parametrize("case", ["dead and constant", "all constant", "all zero", "no weights", "rows and columns"])
def test_nothing_becomes_nan(case: str, modes: dict[Dialect, ProductMode]) -> None:
    x, (weight, bias) = tokens(), layer()
    match case:
        case "dead and constant":
            x[:, 5], x[:, 6], x[:, 7] = 0, 4, 1e-30
        case "all constant":
            x[:] = x[0]
        case "all zero":
            x[:] = 0
        case "no weights":
            weight[:] = 0
        case "rows and columns":
            weight[4], weight[:, 9] = 0, 0
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        result = quantize(x, weight, bias, modes=modes)
    exact = x @ weight + bias
    for dialect in PADDED_DIALECTS:
        y = computed(x, result, dialect)
        assert np.abs(y - exact).max() <= 0.05 * np.abs(exact).max()
        assert all(np.isfinite(dataclasses.astuple(result.errors[dialect])))
        assert np.all(np.isfinite(result.smoothing.scale))
