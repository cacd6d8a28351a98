from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mexma_export.quantize import statistics
from mexma_export.quantize.statistics import InputStatistics, Observer

Floats = NDArray[np.float32]


def tokens(seed: int, n_tokens: int, n_channels: int) -> Floats:
    random = np.random.default_rng(seed)
    spread = np.exp(random.normal(0, 2, n_channels))
    return (random.normal(1, spread, (n_tokens, n_channels))).astype(np.float32)


def observed(x: Floats, cuts: list[int], *, seed: int = 0, weights: Floats | None = None) -> InputStatistics:
    observer = Observer(x.shape[1], np.ones(len(x), np.float32) if weights is None else weights, seed=seed)
    for batch in np.split(x, sorted(cut % len(x) for cut in cuts)):
        observer.add(batch)
    return observer.finish()


@pytest.fixture(scope="module", autouse=True)
def small_buffers() -> object:
    """Sizes that a few dozen tokens exceed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "BUFFER_TOKENS", 16)
        patch.setattr(statistics, "N_SAMPLED", 12)
        patch.setattr(statistics, "N_EXTREME", 5)
        yield


splits = st.lists(st.integers(0, 1000), max_size=6)


@given(st.integers(0, 1000), st.integers(1, 80), st.integers(1, 6), splits)
def test_any_split_into_batches_gives_what_numpy_gives_on_the_whole(
    seed: int, n_tokens: int, n_channels: int, cuts: list[int]
) -> None:
    x = tokens(seed, n_tokens, n_channels)
    found = observed(x, cuts)
    assert np.array_equal(found.lowest, x.min(axis=0))
    assert np.array_equal(found.highest, x.max(axis=0))
    expected = np.cov(x.astype(np.float64), rowvar=False, bias=True).reshape(n_channels, n_channels)
    scale = np.abs(x - x.mean(axis=0)).max(axis=0) + 1e-6 * np.abs(x).max(axis=0)
    assert np.all(np.abs(found.covariance - expected) <= 1e-5 * np.outer(scale, scale))


@given(st.integers(0, 1000), st.integers(2, 80), splits)
def test_tokens_count_by_their_weights(seed: int, n_tokens: int, cuts: list[int]) -> None:
    x = tokens(seed, n_tokens, 3)
    weights = np.random.default_rng(seed).uniform(0.1, 1, n_tokens).astype(np.float32)
    expected = np.cov(x.astype(np.float64), rowvar=False, ddof=0, aweights=weights)
    scale = np.abs(x - x.mean(axis=0)).max(axis=0) + 1e-6 * np.abs(x).max(axis=0)
    assert np.all(np.abs(observed(x, cuts, weights=weights).covariance - expected) <= 1e-5 * np.outer(scale, scale))


def test_tokens_that_count_more_are_sampled_more() -> None:
    x = np.arange(4000, dtype=np.float32)[:, np.newaxis]
    weights = np.where(x[:, 0] < 2000, 9, 1).astype(np.float32)
    sampled = observed(x, [], weights=weights).sample[: statistics.N_SAMPLED, 0]
    assert (sampled < 2000).mean() > 0.6


def test_channels_far_from_zero_keep_their_variance() -> None:
    """As outlier channels are: of a mean ten thousand times their spread."""
    x = np.random.default_rng(0).standard_normal((70, 5)).astype(np.float32) + np.float32(1e4)
    covariance = observed(x, [20, 40]).covariance
    assert np.abs(covariance - np.cov(x.astype(np.float64), rowvar=False, bias=True)).max() < 1e-4
    assert np.linalg.eigvalsh(covariance).min() > 0


@given(st.integers(0, 1000), st.integers(1, 80), splits)
def test_the_sample_is_of_tokens_seen_and_stands_for_all(seed: int, n_tokens: int, cuts: list[int]) -> None:
    x = tokens(seed, n_tokens, 4)
    found = observed(x, cuts)
    rows = {tuple(row) for row in x.tolist()}
    sampled = [tuple(row) for row in found.sample.tolist()]
    assert set(sampled) <= rows
    assert len(set(sampled)) == len(sampled) == min(n_tokens, len(sampled))
    assert len(found.sample_weights) == len(sampled)
    assert np.all(found.sample_weights > 0)
    assert found.sample_weights.sum() == pytest.approx(n_tokens, rel=1e-5)


@given(st.integers(0, 1000), splits)
def test_which_tokens_are_drawn_depends_on_the_seed_alone(seed: int, cuts: list[int]) -> None:
    x = tokens(seed, 60, 4)
    drawn = observed(x, cuts, seed=seed).sample[:12]
    assert np.array_equal(drawn, observed(x, [], seed=seed).sample[:12])
    assert not np.array_equal(drawn, observed(x, cuts, seed=seed + 1).sample[:12])


@given(st.integers(0, 59), splits)
def test_the_token_of_the_largest_outlier_is_always_kept(row: int, cuts: list[int]) -> None:
    x = tokens(3, 60, 4)
    x[row, 2] = 500 * np.abs(x[:, 2]).max()
    sample = observed(x, cuts).sample
    assert x[row].tolist() in sample.tolist()


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_channels_have_no_variance_and_no_nan(value: float) -> None:
    x = tokens(0, 50, 3)
    x[:, 1] = value
    found = observed(x, [20])
    assert found.lowest[1] == found.highest[1] == value
    assert np.abs(found.covariance[1]).max() < 1e-5 * np.abs(x).max()
    for values in (found.covariance, found.sample, found.sample_weights):
        assert np.all(np.isfinite(values))
