"""Outlier channel splitting: a channel is computed several times over, a part each (Zhao et al., 2019,
arXiv:1901.09504).

A few channels after GELU are ten times as large as all others, in the tokens that all text shares most of all: the
scale of such a token is coarse for everything else in it. A channel split into k, each with a kth of the weights that
read it, gives the same sum; smoothed by k, it is a kth as large.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from mexma_export.quantize.recipe import Recipe
from mexma_export.quantize.statistics import InputStatistics

STEP, TENSOR_CORE_STEP = 8, 32
"""Channels are added by multiples: kernels like even sizes, those of a GPU in 8 bits want 16 or 32."""


def n_split_channels(recipe: Recipe, group: str, n_channels: int) -> int:
    """How many channels splitting adds to the `n_channels` that `group` reads, filling up its last scale group."""
    wanted = recipe.split_channel_share * n_channels
    if recipe.is_for_tensorrt:
        return round(wanted / TENSOR_CORE_STEP) * TENSOR_CORE_STEP
    if not recipe.has_scale_groups(group):
        return round(wanted / STEP) * STEP
    step = recipe.group_size_for(n_channels)
    return math.ceil(wanted / step) * step


def split_counts(statistics: InputStatistics, n_more: int) -> NDArray[np.int64]:
    """Into how many parts to split each channel, `(channels,)`: `n_more` channels in all more than there are.

    Each goes where it takes most off the squares of the largest numbers of all tokens.
    """
    magnitude = np.abs(statistics.sample)
    counts = np.ones(magnitude.shape[1], dtype=np.int64)
    parts = magnitude.copy()
    for _ in range(n_more):
        largest = parts.argmax(axis=1)
        weights = statistics.sample_weights * np.square(np.take_along_axis(parts, largest[:, np.newaxis], axis=1)[:, 0])
        channel = np.bincount(largest, weights=weights, minlength=len(counts)).argmax()
        counts[channel] += 1
        parts[:, channel] = magnitude[:, channel] / counts[channel]
    return counts


def split_channels(statistics: InputStatistics, channels: NDArray[np.int64]) -> InputStatistics:
    """Statistics of an input that has `channels` of this one, some of them several times."""
    return dataclasses.replace(
        statistics,
        lowest=statistics.lowest[channels],
        highest=statistics.highest[channels],
        covariance=statistics.covariance[np.ix_(channels, channels)],
        sample=np.ascontiguousarray(statistics.sample[:, channels]),
    )
