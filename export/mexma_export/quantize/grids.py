"""The numbers that weights become, in units of their scale: integers of 8 or fewer bits, or floats of 8."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mexma_export.graph.input_quantization import E4M3_HIGHEST, Activation
from mexma_export.quantize.recipe import Recipe

Floats = NDArray[np.float32]
SMALLEST_SCALE = 1e-10
"""Of an output channel whose weights are all zeros."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Weights are multiples of a scale for each output channel; these are the multiples."""

    highest: int
    dtype: np.dtype[Any]
    scale_dtype: np.dtype[Any]
    """What the scales are stored as: they are its numbers before any weight is rounded."""

    def nearest(self, units: Floats) -> Floats:
        """Each of `units` as the number next to it, within the range."""
        if self.dtype == np.int8:
            integers: Floats = np.clip(np.rint(units), -self.highest, self.highest)
            return integers
        return to_e4m3(units).astype(np.float32)

    def scales(self, weight: Floats) -> Floats:
        """float32 `(out,)`: the largest weight of each output channel of `(in, out)` becomes the largest number."""
        largest: Floats = np.abs(weight).max(axis=0)
        return stored_scale(largest / np.float32(self.highest), self.scale_dtype)


def integer_grid(bits: int) -> Grid:
    """Integers of `bits`, as many below zero as above."""
    return Grid(highest=(1 << (bits - 1)) - 1, dtype=np.dtype(np.int8), scale_dtype=np.dtype(np.float32))


def grid_of(recipe: Recipe, activation: Activation) -> Grid:
    """The weights that go with `activation`: floats with floats, integers with integers."""
    if activation is Activation.E4M3:
        return Grid(highest=E4M3_HIGHEST, dtype=activation.dtype, scale_dtype=recipe.float_dtype)
    return dataclasses.replace(integer_grid(recipe.weight_bits), scale_dtype=recipe.float_dtype)


def stored_scale(scale: Floats, dtype: np.dtype[Any]) -> Floats:
    """`scale` as numbers that `dtype` holds, none of them smaller than before, none of them zero."""
    if dtype == np.float32:
        return np.maximum(scale, np.float32(SMALLEST_SCALE))
    least = np.finfo(np.float16).smallest_subnormal
    near = np.maximum(scale.astype(np.float16), least)
    return np.where(near < scale, np.nextafter(near, np.float16(np.inf)), near).astype(np.float32)


def to_e4m3(units: Floats) -> NDArray[Any]:
    """Rounded to the nearest, ties to even; beyond the range the largest, as QuantizeLinear saturates."""
    result: NDArray[Any] = np.clip(units, -E4M3_HIGHEST, E4M3_HIGHEST).astype(ml_dtypes.float8_e4m3fn)
    return result
