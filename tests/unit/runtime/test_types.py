from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma_runtime.errors import InputError
from mexma_runtime.types import Ragged

sentences = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=6), max_size=8)


def rows_of(ragged: Ragged) -> list[list[int]]:
    return [ragged[row].tolist() for row in range(len(ragged))]


@given(sentences)
def test_sequences_come_back_as_they_were(rows: list[list[int]]) -> None:
    ragged = Ragged.from_sequences(rows)

    assert rows_of(ragged) == rows
    assert ragged.lengths.tolist() == [len(row) for row in rows]
    assert ragged.ids.dtype == np.int32
    assert ragged.offsets.dtype == np.int64


@given(sentences.filter(bool), st.data())
def test_take_is_indexing_of_a_list(rows: list[list[int]], data: st.DataObject) -> None:
    picked = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))

    taken = Ragged.from_sequences(rows).take(np.array(picked, dtype=np.int64))

    assert rows_of(taken) == [rows[row] for row in picked]


def test_a_row_is_a_view() -> None:
    ragged = Ragged.from_sequences([[1, 2], [3]])

    assert np.shares_memory(ragged[1], ragged.ids)


@pytest.mark.parametrize("row", [-1, 2])
def test_a_row_that_is_not_there_is_an_index_error(row: int) -> None:
    with pytest.raises(IndexError, match=f"row {row} of 2"):
        Ragged.from_sequences([[1], [2]])[row]


@pytest.mark.parametrize(
    ("ids", "offsets", "said"),
    [
        (np.zeros(2, np.int64), np.array([0, 2]), "Ragged.ids: expected int32 .*got int64"),
        (np.zeros((1, 2), np.int32), np.array([0, 2]), "Ragged.ids"),
        ([0, 0], np.array([0, 2]), "Ragged.ids: expected a NumPy array, got list"),
        (np.zeros(2, np.int32), [0, 2], "Ragged.offsets: expected a NumPy array, got list"),
        (np.zeros(2, np.int32), np.array([0, 2], np.int32), "Ragged.offsets: expected int64"),
        (np.zeros(0, np.int32), np.zeros(0, np.int64), "Ragged.offsets: expected int64"),
        (np.zeros(2, np.int32), np.array([1, 2]), "expected to rise from 0 to 2"),
        (np.zeros(2, np.int32), np.array([0, 1]), "expected to rise from 0 to 2"),
        (np.zeros(2, np.int32), np.array([0, 2, 1, 2]), "expected to rise from 0 to 2"),
    ],
)
def test_what_is_not_ragged_is_refused(ids: Any, offsets: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Ragged(ids=ids, offsets=offsets)


@pytest.mark.parametrize(
    ("sequence", "said"),
    [
        ([1.7, 2.9], r"expected a sequence of whole numbers, got float64 \(2,\)"),
        (["12"], "expected a sequence of whole numbers, got <U2"),
        ([[1], [2]], r"expected a sequence of whole numbers, got int64 \(2, 1\)"),
        ([1, 1 << 40], "expected token ids of 32 bits"),
    ],
)
def test_ids_are_whole_numbers_of_32_bits(sequence: list[Any], said: str) -> None:
    with pytest.raises(InputError, match=f"input 1: {said}"):
        Ragged.from_sequences([[1], sequence])
