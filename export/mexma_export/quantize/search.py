"""The choice of one group's quantization: smoothing, ranges, rounding and bias, by the error of its output.

The error is measured on sampled tokens, against the product in float, as a share of the output's variance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mexma_export.graph.input_quantization import SMALLEST, Activation, QuantizedInput
from mexma_export.quantize.fake_quantization import quantized, static_parameters
from mexma_export.quantize.grids import grid_of, stored_scale
from mexma_export.quantize.recipe import Recipe, Rounding
from mexma_export.quantize.rounding import round_weights
from mexma_export.quantize.smoothing_refinement import NoiseModel, refine
from mexma_export.quantize.statistics import InputStatistics
from mexma_runtime.bundle.manifest import ProductMode
from mexma_runtime.types import Dialect

Floats = NDArray[np.float32]
MIN_RANGE = 1e-3
"""A channel's range, or its weights, count as no less than this share of the median: a dead one is not blown up."""
ONE_SIDED_ZERO_POINTS = (64, 32, 16, 8)
"""To choose from for scales a token: inputs after GELU are nearly one-sided."""


@dataclass(frozen=True, kw_only=True)
class Errors:
    """The output's error after each step, as a share of its variance."""

    plain: float
    """Nearest rounding, the whole range, and the product as the checkpoint has it."""
    smoothed: float
    """With heads transformed, channels split and put in order, and smoothing and ranges as chosen."""
    final: float
    """With rounding and bias as the recipe says."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Smoothing:
    """`x / scale` goes into the product, whose weights are multiplied by `scale`."""

    alpha: float | None
    scale: Floats
    """float32 `(in,)`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupResult:
    """What the search chose for one linear group."""

    smoothing: Smoothing
    inputs: Mapping[Dialect, QuantizedInput]
    """With shift, but without multiplier: where the smoothing is computed is the caller's business."""
    weight: NDArray[Any]
    """`(in, out)`: int8, or float8_e4m3fn."""
    weight_scale: Floats
    """float32 `(out,)`."""
    bias: Mapping[Dialect, Floats]
    """float32 `(out,)`: with what the shift takes away, and the correction."""
    errors: Mapping[Dialect, Errors]


def quantize_group(
    statistics: InputStatistics,
    weight: Floats,
    bias: Floats,
    *,
    modes: Mapping[Dialect, ProductMode],
    recipe: Recipe,
    activation: Activation,
    shiftable: Collection[Dialect],
    splits: Floats | None = None,
    original: tuple[InputStatistics, Floats] | None = None,
) -> GroupResult:
    """Quantize the product of one input with `weight`, float32 `(in, out)`, for all dialects at once.

    `modes` has no FLOAT. `shiftable`: dialects in which each channel's range may be moved around zero. `splits`,
    float32 `(in,)`: into how many parts the channel was split; None: none was. `original`: the input and its weight
    before what was done to both, exactly, for `errors.plain`; None: nothing was.
    """
    search = _Search(statistics, weight, splits, modes, recipe, activation, shiftable)
    unsmoothed = plain = search.try_smoothing(search.smoothing(None), is_plain=True)
    if original:
        before = _Search(*original, None, modes, recipe, activation, shiftable)
        plain = before.try_smoothing(before.smoothing(None), is_plain=True)
    # A float's rounding is a share of the number itself: no smoothing makes it smaller.
    is_float = activation is Activation.E4M3
    alphas = (None,) if is_float else recipe.smoothquant_alphas
    candidates = [unsmoothed, *(search.try_smoothing(search.smoothing(alpha)) for alpha in alphas)]
    best = min(candidates, key=_Candidate.total)
    if recipe.smoothing_refinement_steps and not is_float:
        best = min(best, search.try_smoothing(search.refined(best)), key=_Candidate.total)
    chosen = best.smoothing
    smoothed = weight * chosen.scale[:, np.newaxis]
    covariance = None
    if recipe.rounding is Rounding.GPTQ:
        covariance = statistics.covariance / np.outer(chosen.scale, chosen.scale)
        covariance[np.diag_indices_from(covariance)] += search.noise(best)
    grid = grid_of(recipe, activation)
    rounded, scales = round_weights(smoothed, grid=grid, rounding=recipe.rounding, covariance=covariance)
    weights = rounded.astype(np.float32) * scales
    errors, biases = {}, {}
    for dialect, how in best.inputs.items():
        difference = search.difference(chosen, how, weights)
        correction = search.mean(difference) if recipe.correct_bias else np.float32(0)
        biases[dialect] = (bias - search.shifted(chosen, how) - correction).astype(np.float32)
        errors[dialect] = Errors(
            plain=plain.errors[dialect],
            smoothed=best.errors[dialect],
            final=search.error(difference - correction),
        )
    return GroupResult(
        smoothing=chosen,
        inputs=best.inputs,
        weight=rounded,
        weight_scale=scales,
        bias=biases,
        errors=errors,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Candidate:
    smoothing: Smoothing
    inputs: Mapping[Dialect, QuantizedInput]
    errors: Mapping[Dialect, float]

    def total(self) -> float:
        """What candidates are compared by."""
        return sum(self.errors.values())


class _Search:
    """Errors of one group on its sample."""

    def __init__(
        self,
        statistics: InputStatistics,
        weight: Floats,
        splits: Floats | None,
        modes: Mapping[Dialect, ProductMode],
        recipe: Recipe,
        activation: Activation,
        shiftable: Collection[Dialect],
    ) -> None:
        self._statistics, self._weight = statistics, weight
        self._splits = np.ones(len(weight), np.float32) if splits is None else splits
        self._modes, self._recipe, self._activation, self._shiftable = modes, recipe, activation, shiftable
        self._group_size, self._grid = recipe.group_size_for(len(weight)), grid_of(recipe, activation)
        self._share = statistics.sample_share
        self._output = statistics.sample @ weight
        centred = self._output - self.mean(self._output)
        self._variance = max(float(self._share @ np.square(centred).sum(axis=1)), float(np.finfo(np.float32).tiny))

    def mean(self, y: Floats) -> Floats:
        """float32 `(out,)`: over the text that the sample stands for."""
        result: Floats = self._share @ y
        return result

    def error(self, difference: Floats) -> float:
        """Mean square of `difference`, as a share of the output's variance."""
        return float(self._share @ np.square(difference).sum(axis=1)) / self._variance

    def smoothing(self, alpha: float | None) -> Smoothing:
        """SmoothQuant's scale (Xiao et al., 2022, arXiv:2211.10438), range^alpha / weight^(1 - alpha).

        Without one, a channel split into k is still divided by k.
        """
        lowest, highest = self._statistics.lowest, self._statistics.highest
        if alpha is None:
            return Smoothing(alpha=None, scale=self._splits)
        ranges = _no_less((highest - lowest) / np.float32(2) if self._shiftable else np.maximum(highest, -lowest))
        weights = _no_less(np.abs(self._weight).max(axis=1))
        logarithm = alpha * np.log(ranges) - (1 - alpha) * np.log(weights)
        return Smoothing(alpha=alpha, scale=np.exp(logarithm - logarithm.mean()).astype(np.float32))

    def refined(self, candidate: _Candidate) -> Smoothing:
        """The smoothing of `candidate` with a scale of its own for each channel."""
        scale = candidate.smoothing.scale
        model = NoiseModel(
            self._statistics,
            self._weight,
            scale,
            candidate.inputs,
            grid=self._grid,
            group_size=self._group_size,
        )
        refined = refine(model, scale, self._recipe.smoothing_refinement_steps)
        return dataclasses.replace(candidate.smoothing, scale=refined)

    def try_smoothing(self, smoothing: Smoothing, *, is_plain: bool = False) -> _Candidate:
        """The best ranges under `smoothing`, and the error with weights rounded to the nearest."""
        rounded, scales = round_weights(
            self._weight * smoothing.scale[:, np.newaxis], grid=self._grid, rounding=Rounding.NEAREST
        )
        weight = rounded.astype(np.float32) * scales
        inputs, errors = {}, {}
        found: dict[tuple[ProductMode, bool], tuple[float, QuantizedInput]] = {}
        for dialect, mode in self._modes.items():
            kind = mode, dialect in self._shiftable and not is_plain
            if kind not in found:
                ways = self._inputs(smoothing, *kind, is_plain=is_plain)
                tried = [(self._error_of_ranges(smoothing, how, weight), how) for how in ways]
                found[kind] = min(tried, key=lambda pair: pair[0])
            errors[dialect], inputs[dialect] = found[kind]
        return _Candidate(smoothing=smoothing, inputs=inputs, errors=errors)

    def _error_of_ranges(self, smoothing: Smoothing, how: QuantizedInput, weight: Floats) -> float:
        difference = self.difference(smoothing, how, weight)
        return self.error(difference - self.mean(difference) if self._recipe.correct_bias else difference)

    def difference(self, smoothing: Smoothing, how: QuantizedInput, weight: Floats) -> Floats:
        """What quantization adds to the output of each sampled token: float32 `(tokens, out)`."""
        product = quantized(self._smoothed(smoothing, how), how, self._group_size) @ weight
        result: Floats = product - self.shifted(smoothing, how) - self._output
        return result

    def shifted(self, smoothing: Smoothing, how: QuantizedInput) -> Floats:
        """float32 `(out,)`, or 0: what the shift adds to every output."""
        if how.shift is None:
            return np.zeros(1, np.float32)
        result: Floats = (how.shift * smoothing.scale).astype(np.float32) @ self._weight
        return result

    def noise(self, candidate: _Candidate) -> NDArray[np.float64]:
        """float64 `(in,)`: mean square of what rounding adds to each channel, the dialects' mean."""
        total = np.zeros(self._statistics.sample.shape[1])
        for how in candidate.inputs.values():
            z = self._smoothed(candidate.smoothing, how)
            total += self._share @ np.square(quantized(z, how, self._group_size) - z)
        return total / len(candidate.inputs)

    def _smoothed(self, smoothing: Smoothing, how: QuantizedInput) -> Floats:
        z: Floats = self._statistics.sample / smoothing.scale
        return z if how.shift is None else z + how.shift

    def _inputs(
        self, smoothing: Smoothing, mode: ProductMode, is_shiftable: bool, *, is_plain: bool
    ) -> list[QuantizedInput]:
        """The ways to quantize the input that are tried."""
        ends = np.stack([self._statistics.lowest, self._statistics.highest]) / smoothing.scale
        base = QuantizedInput(mode=mode, activation=self._activation, zero_point=self._activation.middle)
        bases = [base]
        if is_shiftable:
            # Integers want the range in the middle; floats, finer near zero, want the mean there.
            is_float = self._activation is Activation.E4M3
            centre = self.mean(self._statistics.sample) / smoothing.scale if is_float else ends.mean(axis=0)
            bases.append(dataclasses.replace(base, shift=-centre))
        if mode is ProductMode.STATIC:
            return [how for base in bases for how in self._static_inputs(base, ends, is_plain=is_plain)]
        if mode is ProductMode.TOKEN:
            return bases + self._one_sided_inputs(base, ends)
        return bases

    def _static_inputs(self, base: QuantizedInput, ends: Floats, *, is_plain: bool) -> list[QuantizedInput]:
        """`base` for each share of the range from calibration."""
        whole = ends if base.shift is None else ends + base.shift
        tried = []
        for clip_ratio in (1.0,) if is_plain else self._recipe.clip_ratios:
            scale, zero_point = static_parameters(whole, self._activation, clip_ratio)
            if self._recipe.is_for_tensorrt:
                scale = float(stored_scale(np.array(scale, np.float32), self._grid.scale_dtype))
            tried.append(dataclasses.replace(base, scale=scale, zero_point=zero_point))
        return tried

    def _one_sided_inputs(self, base: QuantizedInput, ends: Floats) -> list[QuantizedInput]:
        """`base` with most integers above zero, where most of the range is and the integers are unsigned."""
        lowest, highest = min(float(ends.min()), 0.0), float(ends.max())
        if self._activation is not Activation.UINT8 or highest <= -2 * lowest:
            return []
        return [
            dataclasses.replace(
                base, zero_point=zero, least_reach=max(-lowest * (self._activation.highest - zero) / zero, SMALLEST)
            )
            for zero in ONE_SIDED_ZERO_POINTS
        ]


def _no_less(values: Floats) -> Floats:
    floor = MIN_RANGE * float(np.median(values))
    result: Floats = np.maximum(values, floor if floor > 0 else 1.0)
    return result
