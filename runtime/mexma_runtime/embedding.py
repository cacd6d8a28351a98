"""The way of token ids through an engine: checked, planned, run in turns, written into the caller's rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mexma_runtime.backends.base import Backend
from mexma_runtime.batching import plan_batches
from mexma_runtime.errors import InputError
from mexma_runtime.manifest import Manifest
from mexma_runtime.turns import Call
from mexma_runtime.types import Ragged, Vectors


def embed(
    backend: Backend,
    ragged: Ragged,
    out: Vectors,
    call: Call,
    *,
    max_rows: int | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> None:
    """Write the vector of each sentence of `ragged` into its row of `out`: float32 `(n, dim)`, C-contiguous.

    Takes a turn for each batch, so it raises what `Call.turn` raises; `on_rows` is called after each with
    the number of rows done.
    """
    scratch: Vectors | None = None
    n_done = 0
    for rows in plan_batches(ragged.lengths, backend.info.policy, max_rows):
        n_rows, first = rows.size, int(rows[0])
        is_consecutive = bool(np.all(np.diff(rows) == 1))
        batch = ragged if is_consecutive and n_rows == len(ragged) else ragged.take(rows)
        if is_consecutive:
            with call.turn():
                backend.run(batch, out[first : first + n_rows])
        else:
            if scratch is None or len(scratch) < n_rows:
                scratch = np.empty((n_rows, out.shape[1]), dtype=np.float32)
            with call.turn():
                backend.run(batch, scratch[:n_rows])
            out[rows] = scratch[:n_rows]
        n_done += n_rows
        if on_rows:
            on_rows(n_done)


def check_ids(ragged: Ragged, manifest: Manifest, *, first_index: int = 0) -> None:
    """Raise InputError, which names the sentence, for ids or lengths that the model has no rows for."""
    if not isinstance(ragged, Ragged):
        raise InputError(f"expected a Ragged, got {type(ragged).__name__}: Ragged.from_sequences makes one of lists")
    max_tokens, vocab_size = manifest.text.max_tokens, manifest.model.vocab_size
    lengths = ragged.lengths
    bad_rows = np.flatnonzero((lengths < 1) | (lengths > max_tokens))
    if bad_rows.size:
        row = int(bad_rows[0])
        raise InputError(f"expected 1 to {max_tokens} tokens, got {lengths[row]}", index=first_index + row)
    bad_ids = np.flatnonzero((ragged.ids < 0) | (ragged.ids >= vocab_size))
    if bad_ids.size:
        row = int(np.searchsorted(ragged.offsets, bad_ids[0], side="right")) - 1
        raise InputError(
            f"expected token ids from 0 to {vocab_size - 1}, got {ragged.ids[bad_ids[0]]}", index=first_index + row
        )
