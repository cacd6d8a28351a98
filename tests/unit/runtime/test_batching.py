from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mexma_runtime.batching import BatchPolicy, Grouping, make_batches

lengths_of = st.lists(st.integers(1, 40), max_size=120).map(lambda values: np.array(values, dtype=np.int64))
row_limits = st.none() | st.integers(1, 9)
policies = st.builds(
    BatchPolicy,
    max_batch_tokens=st.integers(1, 100),
    grouping=st.sampled_from(Grouping),
    max_batch_rows=row_limits,
)


@given(lengths_of, policies, row_limits)
def test_every_row_is_in_exactly_one_batch(
    lengths: NDArray[np.int64], policy: BatchPolicy, max_rows: int | None
) -> None:
    batches = make_batches(lengths, policy, max_rows)

    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(lengths.size))
    assert all(batch.size for batch in batches)


@given(lengths_of, policies, row_limits)
def test_no_batch_is_over_the_budget(lengths: NDArray[np.int64], policy: BatchPolicy, max_rows: int | None) -> None:
    for batch in make_batches(lengths, policy, max_rows):
        is_padded = policy.grouping is Grouping.PADDED
        n_tokens = batch.size * lengths[batch].max() if is_padded else lengths[batch].sum()
        assert batch.size == 1 or n_tokens <= policy.max_batch_tokens
        assert all(limit is None or batch.size <= limit for limit in (max_rows, policy.max_batch_rows))


@given(lengths_of, policies, row_limits)
def test_equal_lengths_where_asked_and_long_sentences_first(
    lengths: NDArray[np.int64], policy: BatchPolicy, max_rows: int | None
) -> None:
    batches = make_batches(lengths, policy, max_rows)

    if policy.grouping is Grouping.IN_ORDER:
        assert [row for batch in batches for row in batch.tolist()] == list(range(lengths.size))
        return
    in_order = [int(length) for batch in batches for length in lengths[batch]]
    assert in_order == sorted(in_order, reverse=True)
    if policy.grouping is Grouping.EQUAL:
        assert all(np.unique(lengths[batch]).size == 1 for batch in batches)


@given(lengths_of, policies, row_limits)
def test_rows_of_one_length_stay_in_input_order(
    lengths: NDArray[np.int64], policy: BatchPolicy, max_rows: int | None
) -> None:
    rows = np.array([row for batch in make_batches(lengths, policy, max_rows) for row in batch], dtype=np.int64)

    for length in np.unique(lengths):
        assert np.all(np.diff(rows[lengths[rows] == length]) > 0)


@given(lengths_of, st.integers(1, 100))
def test_equal_lengths_take_as_few_batches_as_the_budget_allows(lengths: NDArray[np.int64], budget: int) -> None:
    batches = make_batches(lengths, BatchPolicy(max_batch_tokens=budget, grouping=Grouping.EQUAL))

    values, counts = np.unique(lengths, return_counts=True)
    fewest = sum(-(-int(n) // max(1, budget // int(length))) for length, n in zip(values, counts, strict=True))
    assert len(batches) == fewest


@given(lengths_of, st.integers(1, 100))
def test_mixed_batches_are_full(lengths: NDArray[np.int64], budget: int) -> None:
    batches = make_batches(lengths, BatchPolicy(max_batch_tokens=budget, grouping=Grouping.MIXED))

    for batch, following in pairwise(batches):
        assert lengths[batch].sum() + lengths[following[0]] > budget


@pytest.mark.parametrize(("n_rows", "sizes"), [(9, [5, 4]), (8, [8]), (17, [6, 6, 5])])
def test_a_group_is_divided_evenly(n_rows: int, sizes: list[int]) -> None:
    policy = BatchPolicy(max_batch_tokens=80, grouping=Grouping.EQUAL)

    batches = make_batches(np.full(n_rows, 10, dtype=np.int64), policy)

    assert [batch.size for batch in batches] == sizes


def test_a_million_lengths_are_planned() -> None:
    lengths = np.random.default_rng(0).integers(3, 64, 1_000_000)

    batches = make_batches(lengths, BatchPolicy(max_batch_tokens=512, grouping=Grouping.EQUAL))

    assert sum(batch.size for batch in batches) == lengths.size
