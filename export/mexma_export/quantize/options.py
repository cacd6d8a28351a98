"""What a user may ask of int8 engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mexma_export.quantize.inputs import Activation
from mexma_export.quantize.recipe import Recipe
from mexma_runtime.errors import UsageError

MAX_FLOAT_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """How int8 engines are to be made."""

    recipes: tuple[Recipe, ...]
    calibration: Path | None = None
    """A text file, .tsv or folder; None: the text that ships with the package."""
    activation: Activation = Activation.UINT8
    seed: int = 0
    """Of the tokens that are sampled: the same seed gives the same engines."""
    min_cosine: float | None = None
    """The least mean cosine to accept; products are left in float for it. None: the thresholds alone decide."""
    max_float_share: float = MAX_FLOAT_SHARE
    """Most multiplications, as a share, that may be left in float for `min_cosine`."""

    def __post_init__(self) -> None:
        if not self.recipes:
            raise UsageError("int8: no recipe: name one or more")
        names = [recipe.name for recipe in self.recipes]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(f"int8: several recipes are called {', '.join(repeated)}: engines are named after them")
        if self.min_cosine is not None and not 0 < self.min_cosine < 1:
            raise UsageError(f"min_cosine: expected a number between 0 and 1, got {self.min_cosine}")
        if not 0 <= self.max_float_share <= 1:
            raise UsageError(f"max_float_share: expected a number from 0 to 1, got {self.max_float_share}")
