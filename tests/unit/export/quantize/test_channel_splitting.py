from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma_export.quantize.channel_splitting import n_split_channels, split_channels, split_counts
from mexma_export.quantize.recipe import load_recipe
from mexma_export.quantize.statistics import InputStatistics, Observer
from mexma_runtime.bundle.manifest import ProductMode
from mexma_runtime.types import PADDED_DIALECTS, Dialect


def statistics(seed: int) -> InputStatistics:
    """As after GELU: channel 5 is ten times as large as the others, in every eighth token."""
    random = np.random.default_rng(seed)
    x = np.maximum(random.standard_normal((300, 24)), -0.17)
    x[::8, 5] = 30
    observer = Observer(24, np.ones(300, np.float32), seed=0)
    observer.add(x.astype(np.float32))
    return observer.finish()


@pytest.mark.parametrize(
    ("mode", "share", "n_channels", "expected"),
    [
        (ProductMode.TOKEN, 1 / 64, 4096, 64),
        (ProductMode.TOKEN, 1 / 64, 1536, 24),
        (ProductMode.TOKEN, 1 / 64, 128, 0),
        (ProductMode.GROUP, 1 / 64, 4096, 128),
        (ProductMode.GROUP, 1 / 32, 4096, 128),
        (ProductMode.GROUP, 3 / 64, 4096, 256),
        (ProductMode.GROUP, 1 / 64, 96, 32),
        *((mode, 0, 4096, 0) for mode in ProductMode),
    ],
)
def test_channels_are_added_by_multiples_and_fill_groups_up(
    mode: ProductMode, share: float, n_channels: int, expected: int
) -> None:
    modes = {dialect: {"*": ProductMode.FLOAT} for dialect in PADDED_DIALECTS}
    modes[Dialect.PORTABLE]["*.ffn.down"] = mode
    recipe = dataclasses.replace(load_recipe("precise"), modes=modes, group_size=128, split_channel_share=share)
    assert n_split_channels(recipe, "layer.3.ffn.down", n_channels) == expected


@pytest.mark.parametrize(("n_channels", "expected"), [(4096, 128), (1536, 64), (3072, 96), (256, 0)])
def test_for_tensorrt_widths_stay_multiples_of_32(n_channels: int, expected: int) -> None:
    assert n_split_channels(load_recipe("tensorrt"), "layer.3.ffn.down", n_channels) == expected


@given(st.integers(0, 1000), st.integers(0, 40))
def test_copies_go_where_the_largest_numbers_are(seed: int, n_more: int) -> None:
    found = statistics(seed)
    counts = split_counts(found, n_more)
    assert counts.min() >= 1
    assert counts.sum() == 24 + n_more
    largest = (np.abs(found.sample) / counts).max(axis=1)
    assert np.all(largest <= np.abs(found.sample).max(axis=1))
    if n_more == 8:
        assert counts[5] > 6


@given(st.integers(0, 1000))
def test_copies_with_a_part_of_the_weights_give_the_same_product(seed: int) -> None:
    found = statistics(seed)
    weight = np.random.default_rng(seed).standard_normal((24, 7)).astype(np.float32)
    counts = split_counts(found, 16)
    channels = np.repeat(np.arange(24), counts)
    split = split_channels(found, channels)
    parts = weight[channels] / counts[channels, np.newaxis]
    assert split.sample @ parts == pytest.approx(found.sample @ weight, rel=1e-4, abs=1e-4)
    assert np.diag(split.covariance) == pytest.approx(np.diag(found.covariance)[channels])
    assert np.array_equal(split.highest, split.sample.max(axis=0))
    assert np.array_equal(split.lowest, split.sample.min(axis=0))
