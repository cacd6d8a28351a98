"""Float weights -> int8 weights and a scale for each output channel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mexma_export.quantize.recipe import Rounding

Floats = NDArray[np.float32]
DAMPING = 0.01
"""Added to the diagonal of the covariance, as a share of its mean: few tokens must not look like certainty."""
BLOCK = 128
SMALLEST_SCALE = 1e-10
"""Of an output channel whose weights are all zeros."""


def weight_scales(weight: Floats, bits: int) -> Floats:
    """float32 `(out,)`: the largest weight of each output channel of `(in, out)` becomes the largest integer."""
    largest: Floats = np.abs(weight).max(axis=0)
    scales: Floats = np.maximum(largest / np.float32(_highest(bits)), np.float32(SMALLEST_SCALE))
    return scales


def round_weights(
    weight: Floats,
    *,
    bits: int,
    rounding: Rounding,
    covariance: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.int8], Floats]:
    """int8 `(in, out)` and float32 `(out,)` scales of `weight`, float32 `(in, out)`.

    `covariance`, float64 `(in, in)`, of what the weight is multiplied by: COMPENSATED needs it.
    """
    scales = weight_scales(weight, bits)
    if rounding is Rounding.NEAREST or covariance is None:
        return _nearest(weight / scales, bits).astype(np.int8), scales
    return _compensated(weight / scales, covariance, bits), scales


def _highest(bits: int) -> int:
    return (1 << (bits - 1)) - 1


def _nearest(units: Floats, bits: int) -> Floats:
    return np.clip(np.rint(units), -_highest(bits), _highest(bits))


def _compensated(units: Floats, covariance: NDArray[np.float64], bits: int) -> NDArray[np.int8]:
    """GPTQ over weights in units of their scale: the channels of largest variance first, in blocks."""
    n_in = len(units)
    variances = np.diag(covariance)
    order = np.argsort(-variances, kind="stable")
    damped = covariance[np.ix_(order, order)] + np.eye(n_in) * (DAMPING * variances.mean() + np.finfo(np.float32).tiny)
    # Row i of the inverse's upper Cholesky factor says how channels after i make up for what channel i lost.
    inverse = np.linalg.inv(damped)
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)
    left = units[order]
    rounded = np.empty_like(left)
    for start in range(0, n_in, BLOCK):
        end = min(start + BLOCK, n_in)
        lost = np.empty_like(left[start:end])
        for i in range(start, end):
            rounded[i] = _nearest(left[i], bits)
            lost[i - start] = (left[i] - rounded[i]) / upper[i, i]
            left[i + 1 : end] -= np.outer(upper[i, i + 1 : end], lost[i - start])
        left[end:] -= upper[start:end, end:].T @ lost
    result = np.empty(units.shape, dtype=np.int8)
    result[order] = rounded
    return result
