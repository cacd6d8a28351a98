"""What a user may ask of quantized engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mexma_export.graph.input_quantization import Activation
from mexma_export.quantize.recipe import Recipe
from mexma_runtime.errors import UsageError
from mexma_runtime.types import Precision

MAX_FLOAT_SHARE = 0.1
FP8_MIN_COSINE, FP8_MAX_FLOAT_SHARE = 0.999, 0.7
"""Three bits of mantissa add three times the noise of int8: about half of the products have to stay in fp16 for as
much fidelity (docs/tensorrt.md)."""


@dataclass(frozen=True, kw_only=True)
class QuantizationOptions:
    """How int8 and fp8 engines are to be made."""

    recipes: tuple[Recipe, ...]
    """Of int8 each, of fp8 those for TensorRT."""
    calibration: Path | None = None
    """A text file, .tsv or folder; None: the text that ships with the package."""
    activation: Activation | None = None
    """Of int8; None: uint8, and int8 where the recipe is for TensorRT."""
    seed: int = 0
    """Of the tokens that are sampled: the same seed gives the same engines."""
    min_cosine: float | None = None
    """The least mean cosine to accept; products are left in float for it. None: of int8 the thresholds alone decide, of
    fp8 FP8_MIN_COSINE."""
    max_float_share: float | None = None
    """Most multiplications, as a share, that may be left in float for `min_cosine`; None: as the precision needs."""

    def __post_init__(self) -> None:
        if not self.recipes:
            raise UsageError("no recipe: name one or more")
        names = [recipe.name for recipe in self.recipes]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(f"several recipes are called {', '.join(repeated)}: engines are named after them")
        if self.seed < 0:
            raise UsageError(f"seed: expected 0 or more, got {self.seed}")
        if self.min_cosine is not None and not 0 < self.min_cosine < 1:
            raise UsageError(f"min_cosine: expected a number between 0 and 1, got {self.min_cosine}")
        if self.activation is Activation.E4M3:
            raise UsageError("activation: e4m3 is what the precision fp8 has: ask for that, not for int8")
        if self.activation is Activation.UINT8 and (wrong := [r.name for r in self.recipes if r.is_for_tensorrt]):
            raise UsageError(
                f"activation: TensorRT takes symmetric integers, not uint8, and {', '.join(wrong)} is for TensorRT: "
                "leave the activation out, or say int8"
            )
        if self.max_float_share is not None and not 0 <= self.max_float_share <= 1:
            raise UsageError(f"max_float_share: expected a number from 0 to 1, got {self.max_float_share}")

    def precisions_and_recipes(self, precisions: Sequence[Precision]) -> list[tuple[Precision, Recipe]]:
        """What is to be written for `precisions`; UsageError where fp8 has no recipe, or a recipe no precision."""
        int8 = [(Precision.INT8, recipe) for recipe in self.recipes if Precision.INT8 in precisions]
        fp8 = [(Precision.FP8, r) for r in self.recipes if Precision.FP8 in precisions and r.is_for_tensorrt]
        others = [recipe.name for recipe in self.recipes if not recipe.is_for_tensorrt]
        if Precision.FP8 in precisions and others and (not fp8 or not int8):
            raise UsageError(
                f"fp8 is for TensorRT alone, and {', '.join(others)} is not: give --recipe tensorrt, or a recipe of "
                "your own whose floats are fp16" + (", and for the others --precision int8" if fp8 else "")
            )
        return int8 + fp8

    def min_cosine_of(self, precision: Precision) -> float | None:
        """The least mean cosine to accept of engines of `precision`; None: whatever it is."""
        return self.min_cosine or (FP8_MIN_COSINE if precision is Precision.FP8 else None)

    def max_float_share_of(self, precision: Precision) -> float:
        """Most multiplications, as a share, that they may leave in float for it."""
        if self.max_float_share is not None:
            return self.max_float_share
        return FP8_MAX_FLOAT_SHARE if precision is Precision.FP8 else MAX_FLOAT_SHARE

    def activation_of(self, precision: Precision, recipe: Recipe) -> Activation:
        """What the activations become."""
        if precision is Precision.FP8:
            return Activation.E4M3
        return self.activation or (Activation.INT8 if recipe.is_for_tensorrt else Activation.UINT8)
