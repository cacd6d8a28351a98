"""Specifications of profiles, and that they hold whatever the runtime asks a plan for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma_export.targets.tensorrt.profiles import DEFAULT_SPECS, parse_profiles
from mexma_runtime.backends.gpu.buckets import STEPS, padded_buckets
from mexma_runtime.batching import BatchPolicy, Grouping, make_batches
from mexma_runtime.bundle.plans import Profile
from mexma_runtime.errors import UsageError

LONGEST = (128, 256, 512, 514, 8192)


def held(profiles: list[Profile], n_sentences: int, longest: int) -> bool:
    return any(profile.holds(n_sentences, longest) for profile in profiles)


def test_the_default_ones_are_few_narrow_and_in_order() -> None:
    profiles = parse_profiles(DEFAULT_SPECS, max_tokens=512)
    shapes = [(p.n_sentences.best, p.n_sentences.most, p.longest.best, p.longest.most) for p in profiles]
    assert shapes == [
        (1, 8, 32, 32),
        (1, 8, 128, 128),
        (1, 8, 512, 512),
        (2048, 2048, 32, 32),
        (512, 512, 128, 128),
        (128, 128, 512, 512),
    ]
    assert [p.name for p in profiles][:2] == ["latency:8:32", "latency:8:128"]


@pytest.mark.parametrize("max_tokens", LONGEST)
def test_every_bucket_is_held_by_one(max_tokens: int) -> None:
    profiles = parse_profiles(DEFAULT_SPECS, max_tokens=max_tokens)
    for shape in padded_buckets(max_tokens, up_to_tokens=STEPS[-1]):
        assert held(profiles, shape.n_sentences, shape.longest), shape


@given(
    st.sampled_from(LONGEST),
    st.lists(st.integers(1, 8192), min_size=1, max_size=300),
    st.sampled_from([DEFAULT_SPECS, ("latency:1",), ("throughput:8192",), ("4x16", "latency:2")]),
)
def test_every_batch_is_held_by_one_or_parts_into_some_that_are(
    max_tokens: int, lengths: list[int], specs: tuple[str, ...]
) -> None:
    """As the backend over a device parts them: by halves, to one sentence at most."""
    profiles = parse_profiles(specs, max_tokens=max_tokens)
    lengths = [min(length, max_tokens) for length in lengths]
    policy = BatchPolicy(
        max_batch_tokens=max(p.n_sentences.most * p.longest.most for p in profiles),
        max_batch_rows=max(p.n_sentences.most for p in profiles),
        grouping=Grouping.PADDED,
    )

    def parted(part: list[int]) -> bool:
        if held(profiles, len(part), max(part)):
            return True
        return len(part) > 1 and parted(part[: len(part) // 2]) and parted(part[len(part) // 2 :])

    for rows in make_batches(np.array(lengths), policy):
        assert parted([lengths[row] for row in rows])


def test_explicit_shapes_are_cut_at_the_models_longest() -> None:
    (profile,) = parse_profiles(["64x9999"], max_tokens=256)
    assert (profile.n_sentences.most, profile.n_sentences.best, profile.longest.most) == (64, 64, 256)


def test_the_same_one_twice_is_one() -> None:
    assert len(parse_profiles(["latency:8", "latency:8"], max_tokens=512)) == 3


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        (["fast"], r"expected latency:N .*got 'fast'"),
        (["latency:0"], r"got 'latency:0'"),
        (["latency:"], r"got 'latency:'"),
        (["0x16"], r"got '0x16'"),
        (["8x16x2"], r"got '8x16x2'"),
        (["throughput:100"], r"throughput:100: no room for one sentence of 512 tokens"),
        (["8x16"], r"8x16 holds sentences of up to 16 tokens, and the model takes 512: add one that does"),
        ([], r"none holds sentences of up to 0 tokens"),
    ],
)
def test_what_cannot_be_read_or_leaves_sentences_out_is_refused(specs: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_profiles(specs, max_tokens=512)


@pytest.mark.parametrize(
    "spec", ["2147483648x512", "99999999999999999999999x512", "latency:100000000", "throughput:4194400"]
)
def test_a_batch_that_no_gpu_holds_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match=r"^profile \S+: at most 4,194,304 tokens, padding included"):
        parse_profiles([spec], max_tokens=512)


def test_profiles_of_one_shape_are_one() -> None:
    found = parse_profiles(["1x512", "01x512", "1x9999", "2x512"], max_tokens=512)
    assert [profile.name for profile in found] == ["1x512", "2x512"]


def test_digits_are_ascii() -> None:
    with pytest.raises(UsageError, match="profile: expected "):
        parse_profiles(["\N{FULLWIDTH DIGIT SIX}x512"], max_tokens=512)
