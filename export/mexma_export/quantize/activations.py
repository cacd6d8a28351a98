"""The integers that inputs become, simulated: what each dialect's kernels compute, as float32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mexma_export.quantize.inputs import Activation, QuantizedInput
from mexma_runtime.manifest import ProductMode
from mexma_runtime.types import Dialect

Floats = NDArray[np.float32]
SMALLEST = np.float32(1e-12)


def static_parameters(z: Floats, activation: Activation, clipping: float) -> tuple[float, int]:
    """Scale and zero point that hold `clipping` of the range of `z`; zero itself is always exact."""
    lowest, highest = (min(0.0, float(z.min())) * clipping, max(0.0, float(z.max())) * clipping)
    if activation is Activation.INT8:
        return max(-lowest, highest, float(SMALLEST)) / activation.highest, 0
    scale = max(highest - lowest, float(SMALLEST)) / (activation.highest - activation.lowest)
    return scale, round(-lowest / scale)


def quantized(z: Floats, how: QuantizedInput, dialect: Dialect, group_size: int) -> Floats:
    """`z`, float32 `(tokens, channels)` after migration, as the kernels of `dialect` see it."""
    if how.mode is ProductMode.FLOAT:
        return z
    if how.mode is ProductMode.STATIC:
        assert how.scale is not None
        return _rounded(z, np.float32(how.scale), how)
    if dialect is Dialect.FUSED:
        above = z.max(axis=1, keepdims=True) / np.float32(how.activation.highest - how.zero_point)
        below = z.min(axis=1, keepdims=True) / np.float32(how.activation.lowest - how.zero_point)
        return _rounded(z, np.maximum(np.maximum(above, below), SMALLEST), how)
    groups = z.reshape(len(z), -1, group_size)
    scale = np.maximum(np.abs(groups).max(axis=2, keepdims=True) / np.float32(127), SMALLEST)
    result: Floats = (np.rint(groups / scale) * scale).reshape(z.shape)
    return result


def _rounded(z: Floats, scale: Floats | np.float32, how: QuantizedInput) -> Floats:
    lowest, highest = how.activation.lowest - how.zero_point, how.activation.highest - how.zero_point
    result: Floats = np.clip(np.rint(z / scale), np.float32(lowest), np.float32(highest)) * scale
    return result
