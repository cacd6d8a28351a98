"""How batches lie in a device's arrays, against NumPy; and the shapes that there are graphs for."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mexma_runtime.backends.gpu.buckets import STEPS, long_buckets, packed_buckets, padded_buckets, size
from mexma_runtime.backends.gpu.layouts import Layout, PackedLayout, PaddedLayout, Shape
from mexma_runtime.backends.padding import padded_inputs
from mexma_runtime.bundle.manifest import PositionScheme, TextEntry
from mexma_runtime.types import Ragged

PAD = 1

sentences_of = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=7), min_size=1, max_size=6)
room = st.tuples(*[st.integers(0, 5)] * 3)


def text_entry(scheme: PositionScheme) -> TextEntry:
    return TextEntry(
        tokenizer="",
        max_tokens=16,
        max_tokens_source="",
        lower_case=False,
        padding_id=PAD,
        position_scheme=scheme,
    )


def laid_out(layout: Layout, batch: Ragged, shape: Shape, *, normalize: bool = False) -> dict[str, NDArray[Any]]:
    """Over what another batch has left there."""
    arrays = {name: np.full(spec.shape, 99).astype(spec.dtype) for name, spec in layout.specs(shape).items()}
    layout.fill(batch, arrays, normalize=normalize)
    return arrays


@given(sentences_of, room, st.sampled_from(PositionScheme), st.booleans())
def test_packing_is_laying_end_to_end(
    sentences: list[list[int]],
    more: tuple[int, int, int],
    scheme: PositionScheme,
    normalize: bool,
) -> None:
    batch, text = Ragged.from_sequences(sentences), text_entry(scheme)
    layout = PackedLayout(text)
    need = layout.shape_of(batch)
    lengths = [len(sentence) for sentence in sentences]
    assert (need.n_sentences, need.longest, need.n_tokens) == (len(lengths), max(lengths), sum(lengths))
    sizes = (need.n_sentences, need.longest, need.n_tokens)
    n_sentences, longest, n_tokens = (size + extra for size, extra in zip(sizes, more, strict=True))
    shape = Shape(n_sentences=n_sentences, longest=longest, n_tokens=n_tokens)

    arrays = laid_out(layout, batch, shape, normalize=normalize)

    assert layout.names == {*arrays, "token_offset"}
    assert layout.constant_specs(shape)["token_offset"].shape == (shape.n_sentences, shape.longest)
    bounds = arrays["cumulative_sequence_length"]
    assert bounds.tolist() == [0, *np.cumsum(lengths), *[sum(lengths)] * more[0]]
    padded = padded_inputs(batch, text)
    spans = list(pairwise(bounds[: len(batch) + 1]))
    for row, (start, end) in enumerate(spans):
        assert arrays["input_ids"][start:end].tolist() == sentences[row]
        assert arrays["position_ids"][start:end].tolist() == padded["position_ids"][row, : end - start].tolist()
    assert arrays["input_ids"][need.n_tokens :].tolist() == [PAD] * more[2]
    assert arrays["normalize"].tolist() == [normalize]
    assert arrays["first_token"].tolist() == [*bounds[: len(batch)], *[0] * more[0]]


@given(sentences_of, room, st.sampled_from(PositionScheme))
def test_padding_leaves_every_sentence_what_it_has_without_more_room(
    sentences: list[list[int]], more: tuple[int, int, int], scheme: PositionScheme
) -> None:
    batch, text = Ragged.from_sequences(sentences), text_entry(scheme)
    layout = PaddedLayout(text)
    need = layout.shape_of(batch)
    n, longest = need.n_sentences + more[0], need.longest + more[1]

    arrays = laid_out(layout, batch, Shape(n_sentences=n, longest=longest, n_tokens=n * longest))

    expected = padded_inputs(batch, text)
    assert layout.names == arrays.keys() == expected.keys()
    for name, array in arrays.items():
        assert array.shape == (n, longest)
        assert np.array_equal(array[: len(batch), : need.longest], expected[name])
    assert not arrays["attention_mask"][: len(batch), need.longest :].any()
    assert np.all(arrays["attention_mask"][len(batch) :].sum(axis=1) == 1)
    assert np.all(arrays["input_ids"][len(batch) :] == PAD)


@given(st.integers(1, 40), st.integers(1, 512), st.integers(1, 4096))
def test_a_batch_runs_in_the_smallest_bucket_that_holds_it(n_sentences: int, longest: int, n_tokens: int) -> None:
    need = Shape(n_sentences=n_sentences, longest=longest, n_tokens=max(n_tokens, longest))
    buckets = packed_buckets(512, up_to_tokens=2048)
    assert buckets == sorted(buckets, key=size)
    found = next((bucket for bucket in buckets if bucket.holds(need)), None)
    holding = [bucket for bucket in buckets if bucket.holds(need)]
    assert found == (min(holding, key=lambda bucket: bucket.n_tokens) if holding else None)
    if found and need.n_tokens >= 12 and n_sentences * 4 <= need.n_tokens and longest <= 512:
        assert found.n_tokens <= need.n_tokens * 1.5


@pytest.mark.parametrize("max_tokens", [16, 128, 512])
def test_lattices_rise_and_stay_within_their_bounds(max_tokens: int) -> None:
    packed = packed_buckets(max_tokens, up_to_tokens=1024)
    assert [bucket.n_tokens for bucket in packed] == [step for step in STEPS if step <= 1024]
    assert all(bucket.longest == min(bucket.n_tokens, max_tokens) for bucket in packed)
    padded = padded_buckets(max_tokens, up_to_tokens=1024)
    assert all(bucket.n_tokens == bucket.n_sentences * bucket.longest <= 1024 for bucket in padded)
    assert max(bucket.longest for bucket in padded) == max_tokens
    assert [b.n_tokens for b in padded] == sorted(b.n_tokens for b in padded)
    assert len(set(padded)) == len(padded)
    assert packed_buckets(max_tokens, up_to_tokens=0) == padded_buckets(max_tokens, up_to_tokens=0) == []


@given(st.integers(4, 600), st.sampled_from([16, 128, 512]))
def test_buckets_for_few_sentences_are_for_long_ones(above: int, max_tokens: int) -> None:
    many = packed_buckets(max_tokens, up_to_tokens=2048)
    few = long_buckets(max_tokens, up_to_tokens=2048, above_mean_tokens=above)
    assert all(shape.n_tokens <= above * shape.n_sentences for shape in many)
    assert all(shape.n_tokens > above * shape.n_sentences for shape in few)
    # One sentence more, and it would be for shorter ones; and each bigger bucket of many has one for few.
    assert all(shape.n_tokens <= above * (shape.n_sentences + 1) for shape in few)
    assert [shape.n_tokens for shape in few] == [shape.n_tokens for shape in many if shape.n_tokens > above]
    assert long_buckets(max_tokens, up_to_tokens=2048, above_mean_tokens=3) == []
