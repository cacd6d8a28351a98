"""The integers that inputs become, simulated: what each mode's kernels compute, as float32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mexma_export.graph.input_quantization import GROUP_HIGHEST, SMALLEST, Activation, QuantizedInput
from mexma_export.quantize.grids import to_e4m3
from mexma_runtime.bundle.manifest import ProductMode

Floats = NDArray[np.float32]


def static_parameters(z: Floats, activation: Activation, clip_ratio: float) -> tuple[float, int]:
    """Scale and zero point that hold `clip_ratio` of the range of `z`; zero itself is always exact."""
    lowest, highest = (min(0.0, float(z.min())) * clip_ratio, max(0.0, float(z.max())) * clip_ratio)
    if activation is not Activation.UINT8:
        return max(-lowest, highest, SMALLEST) / activation.highest, 0
    scale = max(highest - lowest, SMALLEST) / (activation.highest - activation.lowest)
    return scale, round(-lowest / scale)


def quantized(z: Floats, how: QuantizedInput, group_size: int) -> Floats:
    """`z`, float32 `(tokens, channels)` after smoothing, as the product sees it."""
    if how.mode is ProductMode.FLOAT:
        return z
    if how.mode is ProductMode.STATIC:
        assert how.scale is not None
        return _rounded(z, np.float32(how.scale), how)
    if how.mode is ProductMode.TOKEN:
        reach = (z if how.is_one_sided else np.abs(z)).max(axis=1, keepdims=True)
        return _rounded(z, np.maximum(reach, np.float32(how.least_reach)) * np.float32(how.unit_scale), how)
    groups = z.reshape(len(z), -1, group_size)
    scale = np.maximum(np.abs(groups).max(axis=2, keepdims=True) / np.float32(GROUP_HIGHEST), np.float32(SMALLEST))
    result: Floats = (np.rint(groups / scale) * scale).reshape(z.shape)
    return result


def _rounded(z: Floats, scale: Floats | np.float32, how: QuantizedInput) -> Floats:
    lowest, highest = how.activation.lowest - how.zero_point, how.activation.highest - how.zero_point
    units = z / scale
    rounded = to_e4m3(units) if how.activation is Activation.E4M3 else np.clip(np.rint(units), lowest, highest)
    result: Floats = rounded.astype(np.float32) * scale
    return result
