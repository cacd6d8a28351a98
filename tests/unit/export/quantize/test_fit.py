from __future__ import annotations

import dataclasses
import math

import pytest

from mexma_export.checkpoint.checkpoint import Checkpoint
from mexma_export.graph.linear_groups import all_groups
from mexma_export.quantize.channel_splitting import n_split_channels
from mexma_export.quantize.fit import group_size
from mexma_export.quantize.recipe import load_recipe
from mexma_runtime.bundle.manifest import ProductMode
from mexma_runtime.types import PADDED_DIALECTS

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
