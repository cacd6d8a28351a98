"""Ragged ids as the padded arrays that a graph takes. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mexma_runtime.manifest import PositionScheme, TextEntry
from mexma_runtime.types import Ragged

INPUT_NAMES = ("input_ids", "attention_mask", "position_ids")


def padded_inputs(batch: Ragged, text: TextEntry) -> dict[str, NDArray[np.int32]]:
    """INPUT_NAMES -> int32 `(n, longest)`, C-contiguous; the mask is 1 for tokens and 0 for padding.

    Sentences of one length are not copied: `input_ids` is then a view of `batch.ids`. Padding has `text.padding_id`
    as id and the position that transformers gives it: 0 counting from zero, else `text.padding_id`.
    """
    n, lengths = len(batch), batch.lengths
    longest = int(lengths.max(initial=0))
    if batch.ids.size == n * longest:
        ids = np.ascontiguousarray(batch.ids).reshape(n, longest)
        mask = np.ones((n, longest), dtype=np.int32)
    else:
        is_token = np.arange(longest) < lengths[:, np.newaxis]
        ids = np.full((n, longest), text.padding_id, dtype=np.int32)
        ids[is_token] = batch.ids
        mask = is_token.astype(np.int32)
    if text.position_scheme is PositionScheme.FROM_ZERO:
        positions = np.arange(longest, dtype=np.int32) * mask
    else:
        counts = (ids != text.padding_id).astype(np.int32)
        positions = np.cumsum(counts, axis=1, dtype=np.int32) * counts + np.int32(text.padding_id)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
