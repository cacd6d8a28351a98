"""Float weights -> weights of 8 bits and a scale for each output channel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mexma_export.quantize.grids import Grid
from mexma_export.quantize.recipe import Rounding

Floats = NDArray[np.float32]
DAMPING = 0.01
"""Added to the diagonal of the covariance, as a share of its mean: few tokens must not look like certainty."""
BLOCK = 128


def round_weights(
    weight: Floats,
    *,
    grid: Grid,
    rounding: Rounding,
    covariance: NDArray[np.float64] | None = None,
) -> tuple[NDArray[Any], Floats]:
    """Numbers of `grid`, `(in, out)`, and float32 `(out,)` scales of `weight`, float32 `(in, out)`.

    `covariance`, float64 `(in, in)`, of what the weight is multiplied by: GPTQ needs it.
    """
    scales = grid.scales(weight)
    if rounding is Rounding.NEAREST or covariance is None:
        return grid.nearest(weight / scales).astype(grid.dtype), scales
    return _gptq(weight / scales, covariance, grid), scales


def _gptq(units: Floats, covariance: NDArray[np.float64], grid: Grid) -> NDArray[Any]:
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
            rounded[i] = grid.nearest(left[i])
            lost[i - start] = (left[i] - rounded[i]) / upper[i, i]
            left[i + 1 : end] -= np.outer(upper[i, i + 1 : end], lost[i - start])
        left[end:] -= upper[start:end, end:].T @ lost
    result = np.empty(units.shape, dtype=grid.dtype)
    result[order] = rounded
    return result
