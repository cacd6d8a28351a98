"""Whether a recipe fits a model: its patterns name products of it, and channels divide into its scale groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mexma_export.checkpoint.config import ModelConfig
from mexma_export.quantize.channel_splitting import n_split_channels
from mexma_export.quantize.recipe import Recipe
from mexma_runtime.bundle.manifest import GROUP_STEP
from mexma_runtime.errors import UsageError
from mexma_runtime.types import Dialect


def check_fit(recipe: Recipe, groups: Sequence[str], config: ModelConfig, dialects: Iterable[Dialect]) -> None:
    """UsageError where `recipe` has patterns for no product of the model's `groups`, or none for one of them.

    And where OpenVINO would compute products of mode group in float: its groups are multiples of GROUP_STEP.
    """
    recipe.check(groups)
    size = group_size(recipe, groups, config) if Dialect.PORTABLE in dialects else 0
    if size % GROUP_STEP or size > config.hidden_size:
        raise UsageError(
            f"recipe {recipe.name}: OpenVINO finds scales for groups of a multiple of {GROUP_STEP} channels, at most "
            f"{config.hidden_size}, the narrowest product's, and this recipe's of {recipe.group_size} would be {size} "
            f"in this model, whose products read {config.hidden_size} and {config.ffn_size}: give another group_size, "
            "or the products of the portable dialect the mode token or static, by a recipe of your own, or export "
            "--dialect fused"
        )


def group_size(recipe: Recipe, groups: Iterable[str], config: ModelConfig) -> int:
    """Channels that share a scale in products of mode group; 0: there are none.

    The recipe's number, or the largest part of it that divides what each of `groups` reads.
    """
    ffn = config.ffn_size
    widths = {
        ffn + n_split_channels(recipe, group, ffn) if group.endswith("ffn.down") else config.hidden_size
        for group in groups
        if recipe.has_scale_groups(group)
    }
    return recipe.group_size_for(*widths) if widths else 0
