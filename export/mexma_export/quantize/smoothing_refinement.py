"""SmoothQuant's scales refined, each channel's: gradient descent on the noise that quantization is modelled to add."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mexma_export.graph.input_quantization import GROUP_HIGHEST, QuantizedInput
from mexma_export.quantize.grids import Grid
from mexma_export.quantize.statistics import InputStatistics
from mexma_runtime.bundle.manifest import ProductMode
from mexma_runtime.types import Dialect

Floats = NDArray[np.float32]
RATE = 0.05
"""Of Adam (Kingma and Ba, 2014, arXiv:1412.6980), on the logarithms of the scales; falls to a tenth."""
MEAN_DECAY, SQUARE_DECAY = 0.9, 0.99
WEIGHT_SHARE = 0.5
"""What GPTQ leaves of the noise of weights, about."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Steps:
    """What the distance between two integers follows from: in each row and group the largest of `sizes / scale`."""

    sizes: Floats
    """float32 `(rows, in)`."""
    share: Floats
    """float32 `(rows,)`: of all text."""
    group_size: int


class NoiseModel:
    """What quantization adds to a product's output, as a function of the scale of each input channel.

    A number that is rounded to multiples of s is off by s^2 / 12 in the mean square: inputs by the largest of their
    token or group, weights by the largest of their output channel.
    """

    def __init__(
        self,
        statistics: InputStatistics,
        weight: Floats,
        scale: Floats,
        inputs: Mapping[Dialect, QuantizedInput],
        *,
        grid: Grid,
        group_size: int,
    ) -> None:
        """`inputs`: how each dialect quantizes the input after division by `scale`; `weight`, float32 `(in, out)`."""
        self._steps = [_steps_of(statistics, scale, how, group_size) for how in inputs.values()]
        self._energy = np.diag(statistics.covariance).astype(np.float32)
        self._gain, self._magnitude = np.square(weight).sum(axis=1), np.abs(weight)
        self._grid = grid

    def at(self, t: Floats) -> tuple[float, Floats]:
        """Mean square of all dialects' noise with scales `t`, times 12, and its gradient by the logarithms of `t`."""
        scaled = self._magnitude * t[:, np.newaxis]
        largest = scaled.argmax(axis=0)
        squares = np.square(self._grid.scales(scaled)) * np.float32(WEIGHT_SHARE * len(self._steps))
        energy = self._energy / np.square(t)
        total = float(squares.sum() * energy.sum())
        gradient: Floats = -2 * squares.sum() * energy
        np.add.at(gradient, largest, 2 * squares * energy.sum())
        gain = self._gain * np.square(t)
        for steps in self._steps:
            z = (steps.sizes / t).reshape(len(steps.sizes), -1, steps.group_size)
            largest = z.argmax(axis=2)
            squares = np.square(np.take_along_axis(z, largest[:, :, np.newaxis], axis=2)[:, :, 0])
            squares *= steps.share[:, np.newaxis]
            by_group = gain.reshape(-1, steps.group_size).sum(axis=1)
            total += float(squares.sum(axis=0) @ by_group)
            gradient += 2 * gain * np.repeat(squares.sum(axis=0), steps.group_size)
            first = np.arange(len(by_group)) * steps.group_size
            np.add.at(gradient, (largest + first).ravel(), (-2 * squares * by_group).ravel())
        return total, gradient


def refine(model: NoiseModel, scale: Floats, n_steps: int) -> Floats:
    """Scales, float32 `(in,)`, that add less noise by `model` than `scale` does."""
    logarithm, best, least = np.log(scale), scale, np.inf
    mean, square = np.zeros_like(logarithm), np.zeros_like(logarithm)
    for step in range(1, n_steps + 1):
        t = np.exp(logarithm)
        total, gradient = model.at(t)
        if total == 0:
            break
        if total < least:
            best, least = t, total
        gradient /= np.float32(total)
        mean += np.float32(1 - MEAN_DECAY) * (gradient - mean)
        square += np.float32(1 - SQUARE_DECAY) * (np.square(gradient) - square)
        root = np.sqrt(square / np.float32(1 - SQUARE_DECAY**step)) + np.float32(1e-8)
        rate = RATE * (1 - 0.9 * step / n_steps) / (1 - MEAN_DECAY**step)
        logarithm = logarithm - np.float32(rate) * mean / root
    return best


def _steps_of(statistics: InputStatistics, scale: Floats, how: QuantizedInput, group_size: int) -> _Steps:
    if how.mode is ProductMode.STATIC:
        assert how.scale is not None
        ranges = statistics.highest - statistics.lowest
        widest = max(float((ranges / scale).max()), float(np.finfo(np.float32).tiny))
        sizes = (ranges * np.float32(how.scale / widest))[np.newaxis]
        return _Steps(sizes=sizes, share=np.ones(1, np.float32), group_size=len(scale))
    share = statistics.sample_share
    x = statistics.sample
    if how.shift is not None:
        x = x + (how.shift * scale).astype(np.float32)
    if how.mode is ProductMode.GROUP:
        return _Steps(sizes=np.abs(x) * np.float32(1 / GROUP_HIGHEST), share=share, group_size=group_size)
    if how.is_one_sided:  # the smallest number of all text has to fit, too
        least = np.maximum(-statistics.lowest, 0) / np.float32(how.zero_point)
        sizes = np.maximum(x * np.float32(how.unit_scale), least)
    else:
        sizes = np.abs(x) * np.float32(how.unit_scale)
    return _Steps(sizes=sizes, share=share, group_size=len(scale))
