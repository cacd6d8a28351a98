from __future__ import annotations

import dataclasses
import math
from contextlib import nullcontext

import pytest

from mexma_export.checkpoint.checkpoint import Checkpoint
from mexma_export.graph.linear_groups import all_groups
from mexma_export.quantize.channel_splitting import n_split_channels
from mexma_export.quantize.fit import check_fit, group_size
from mexma_export.quantize.recipe import load_recipe
from mexma_runtime.bundle.manifest import ProductMode
from mexma_runtime.errors import UsageError
from mexma_runtime.types import PADDED_DIALECTS, Dialect

FAST = load_recipe("fast")


@pytest.mark.parametrize(
    ("hidden", "ffn", "asked", "expected"),
    [(1024, 4096, 128, 128), (384, 1536, 128, 128), (64, 128, 128, 64), (312, 1200, 128, 8), (768, 3072, 32, 32)],
)
def test_groups_of_channels_divide_what_products_read(
    checkpoint: Checkpoint, hidden: int, ffn: int, asked: int, expected: int
) -> None:
    config = dataclasses.replace(checkpoint.config, hidden_size=hidden, ffn_size=ffn)
    groups = all_groups(config)
    modes = {dialect: {"*": ProductMode.GROUP} for dialect in PADDED_DIALECTS}
    assert (
        group_size(dataclasses.replace(FAST, modes=modes, group_size=asked, split_channel_share=0), groups, config)
        == expected
    )
    split = dataclasses.replace(FAST, modes=modes, group_size=asked, split_channel_share=1 / 64)
    assert group_size(split, groups, config) == expected
    some = {dialect: {"*": ProductMode.TOKEN, "*.ffn.down": ProductMode.GROUP} for dialect in PADDED_DIALECTS}
    split = dataclasses.replace(split, modes=some)
    assert group_size(split, groups, config) == math.gcd(asked, ffn + n_split_channels(split, "layer.0.ffn.down", ffn))
    assert group_size(FAST, groups, config) == 0


def test_what_openvino_would_compute_in_float_is_refused(checkpoint: Checkpoint) -> None:
    """Its one size of groups is at most the narrowest product's, even if only wider ones have groups."""
    modes = {Dialect.PORTABLE: {"*": ProductMode.TOKEN, "*.ffn.down": ProductMode.GROUP}}
    for hidden, ffn, asked, is_taken in ((384, 1536, 384, True), (384, 1536, 768, False), (384, 1500, 128, False)):
        config = dataclasses.replace(checkpoint.config, hidden_size=hidden, ffn_size=ffn)
        recipe = dataclasses.replace(FAST, modes=modes, group_size=asked, split_channel_share=0)
        refusal = pytest.raises(UsageError, match=f"at most {hidden}, the narrowest product's, and .* of {asked} would")
        for dialect, expected in ((Dialect.PORTABLE, nullcontext() if is_taken else refusal), (None, nullcontext())):
            with expected:
                check_fit(recipe, all_groups(config), config, [dialect] if dialect else [])
