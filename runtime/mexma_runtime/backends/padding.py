"""Ragged ids as the padded arrays that a graph takes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mexma_runtime.bundle.manifest import PositionScheme, TextEntry
from mexma_runtime.types import Ragged

INPUT_NAMES = ("input_ids", "attention_mask", "position_ids")


def padded_inputs(batch: Ragged, text: TextEntry) -> dict[str, NDArray[np.int32]]:
    """INPUT_NAMES -> int32 `(n, longest)`, C-contiguous; the mask is 1 for tokens and 0 for padding.

    Sentences of one length are not copied: `input_ids` is then a view of `batch.ids`. Padding has `text.padding_id`
    as id and the position that transformers gives it: 0 counting from zero, else `text.padding_id`.
    """
    n = len(batch)
    longest = int(batch.lengths.max(initial=0))
    if batch.ids.size == n * longest:
        return {
            "input_ids": np.ascontiguousarray(batch.ids).reshape(n, longest),
            "attention_mask": np.ones((n, longest), dtype=np.int32),
            "position_ids": position_ids(batch, text).reshape(n, longest),
        }
    arrays = {name: np.empty((n, longest), dtype=np.int32) for name in INPUT_NAMES}
    fill_padded(batch, arrays, text)
    return arrays


def fill_padded(batch: Ragged, arrays: Mapping[str, NDArray[Any]], text: TextEntry) -> None:
    """The same, into arrays with room for more sentences, which become one token of padding each, and longer ones."""
    mask = arrays["attention_mask"]
    lengths = np.ones(len(mask), dtype=np.int64)
    lengths[: len(batch)] = batch.lengths
    is_token = np.arange(mask.shape[1]) < lengths[:, np.newaxis]
    mask[...] = is_token
    is_token[len(batch) :] = False
    by_name = {"input_ids": (batch.ids, text.padding_id), "position_ids": (position_ids(batch, text), _first(text))}
    for name, (values, padding) in by_name.items():
        arrays[name][...] = padding
        arrays[name][is_token] = values


def position_ids(batch: Ragged, text: TextEntry) -> NDArray[np.int32]:
    """The position of each token: int32 `(total,)`."""
    if text.position_scheme is PositionScheme.FROM_ZERO:
        return np.arange(batch.ids.size, dtype=np.int32) - np.repeat(batch.offsets[:-1], batch.lengths).astype(np.int32)
    counts = (batch.ids != text.padding_id).astype(np.int32)
    so_far = np.cumsum(counts, dtype=np.int32)
    if len(batch) > 1:
        starts = batch.offsets[:-1]
        so_far -= np.repeat(so_far[starts] - counts[starts], batch.lengths)
    so_far *= counts
    so_far += np.int32(text.padding_id)
    return so_far


def _first(text: TextEntry) -> int:
    return 0 if text.position_scheme is PositionScheme.FROM_ZERO else text.padding_id
