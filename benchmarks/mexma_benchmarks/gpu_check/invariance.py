"""The step on batch-mates: some sentences alone, among each other, and in batches as large as they can be."""

from __future__ import annotations

import numpy as np

from mexma_benchmarks.gpu_check.bars import MIN_COSINE
from mexma_benchmarks.gpu_check.steps import Setup
from mexma_benchmarks.result.checks import Check, Record, at_least
from mexma_benchmarks.run.workload import FIRST_ID, draw_lengths
from mexma_export.parity.figures import pair_cosines
from mexma_runtime.types import Ragged

N_ALONE = 64


def check_invariance(setup: Setup, record: Record) -> None:
    """One row: the least cosine between any two of the three ways."""
    lengths = draw_lengths(setup.sizes.n_batch_mates)
    vocab_size = setup.prepared.bundle.manifest.model.vocab_size
    ids = np.random.default_rng(0).integers(FIRST_ID, vocab_size, lengths.sum(), dtype=np.int32)
    many = Ragged.from_lengths(ids, lengths)
    rows = np.linspace(0, len(many) - 1, min(N_ALONE, len(many))).round().astype(np.int64)
    few = many.take(rows)
    with setup.open_encoder() as encoder:
        alone = np.concatenate([encoder.encode_ids(few.part(row, row + 1)) for row in range(len(few))])
        together, among_many = encoder.encode_ids(few), encoder.encode_ids(many)[rows]
        most = encoder.info.max_batch_tokens
    cosines = {
        "alone_among_few": pair_cosines(alone, together),
        "alone_among_many": pair_cosines(alone, among_many),
        "few_among_many": pair_cosines(together, among_many),
    }
    record.samples |= {name: values.tolist() for name, values in cosines.items()}
    record.checks.append(
        Check(
            what=f"one sentence alone, among {len(few)} and among {len(many):,}: least cosine",
            bar=at_least(MIN_COSINE),
            measured=min(float(values.min()) for values in cosines.values()),
            note=f"{ids.size:,} tokens, up to {most:,} in a batch",
        )
    )
