"""What a group of products does to its input before it multiplies: smoothing, and quantization of one kind."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mexma_runtime.bundle.manifest import ProductMode

GROUP_HIGHEST = 127
"""The integer that the largest number of a group becomes."""
E4M3_HIGHEST = 448
SMALLEST = 1e-12
"""Least scale, and least reach of a token: one of all zeros would be 0 / 0."""


class Activation(StrEnum):
    """The numbers that activations become."""

    UINT8 = "uint8"
    """With any zero point: exact and fast on x86 with VNNI."""
    INT8 = "int8"
    """Symmetric, zero point 0: what TensorRT takes."""
    E4M3 = "e4m3"
    """Floats of 8 bits: 4 of exponent, 3 of mantissa, no infinity (Micikevicius et al., 2022, arXiv:2209.05433)."""

    @property
    def lowest(self) -> int:
        """The smallest number: what QuantizeLinear clips to."""
        return {Activation.UINT8: 0, Activation.INT8: -128, Activation.E4M3: -E4M3_HIGHEST}[self]

    @property
    def highest(self) -> int:
        """The largest number of the format."""
        return {Activation.UINT8: 255, Activation.INT8: 127, Activation.E4M3: E4M3_HIGHEST}[self]

    @property
    def middle(self) -> int:
        """The zero point that leaves as many numbers above as below."""
        return 128 if self is Activation.UINT8 else 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's type of the format."""
        if self is not Activation.E4M3:
            return np.dtype(self.value)
        import ml_dtypes  # of the extra `export`, and the command line is read without

        e4m3: np.dtype[Any] = np.dtype(ml_dtypes.float8_e4m3fn)
        return e4m3


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedInput:
    """The input of one group of products: `x * multiplier + shift`, then quantized as `mode` says."""

    mode: ProductMode
    activation: Activation = Activation.UINT8
    multiplier: NDArray[np.float32] | None = None
    """float32 `(in,)`: the smoothing's 1 / t. None: 1, or already part of the layer that gives the input."""
    shift: NDArray[np.float32] | None = None
    """float32 `(in,)`: moves each channel's range to the middle. None: 0, or part of the layer before."""
    scale: float | None = None
    """Of static quantization."""
    zero_point: int = 0
    """Of static quantization, and of scales a token."""
    least_reach: float = SMALLEST
    """What a token's scale is found from is no less than this: holds a small range below zero."""

    @property
    def is_one_sided(self) -> bool:
        """Whether more integers lie above zero than below: of a token, its maximum counts then, not its magnitude."""
        return self.activation.highest - self.zero_point > self.zero_point - self.activation.lowest

    @property
    def unit_scale(self) -> float:
        """Of a token divided by its reach."""
        return 1 / (self.activation.highest - self.zero_point)
