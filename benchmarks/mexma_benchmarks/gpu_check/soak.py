"""The step on memory: thousands of batches of random shapes, and what is free of the device meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mexma_benchmarks.gpu_check.steps import Setup
from mexma_benchmarks.result.checks import Check, Record, at_most
from mexma_benchmarks.run.workload import FIRST_ID
from mexma_runtime import Encoder
from mexma_runtime.types import Ragged

N_SAMPLES = 100
"""Looks at the memory."""
MIB = 1 << 20


def measure_soak(setup: Setup, record: Record) -> None:
    """One row: by how much less is free at the end than after the first batches."""
    import torch

    n = setup.sizes.n_soak_batches
    n_settling = n // 10
    every, vocab_size = max(1, n // N_SAMPLES), setup.prepared.bundle.manifest.model.vocab_size
    with setup.open_encoder() as encoder:
        free = soak(
            encoder,
            vocab_size,
            n_batches=n,
            every=every,
            free_bytes=lambda: int(torch.cuda.mem_get_info(setup.device)[0]),
        )
    record.samples |= {"batches_between_samples": every, "free_bytes": free}
    record.checks.append(
        Check(
            what=f"device memory taken from batch {n_settling:,} to {n:,} of random shapes",
            unit="MiB",
            bar=at_most(64),
            measured=(free[n_settling // every] - free[-1]) / MIB,
            note=f"{free[-1] / MIB:,.0f} MiB free at the end",
        )
    )


def soak(
    encoder: Encoder, vocab_size: int, *, n_batches: int, every: int, free_bytes: Callable[[], int], seed: int = 0
) -> list[int]:
    """What `free_bytes` says before the first batch and after every `every` of them."""
    random, info = np.random.default_rng(seed), encoder.info
    free = [free_bytes()]
    for number in range(1, n_batches + 1):
        lengths = soak_lengths(random, max_tokens=info.max_tokens, max_batch_tokens=info.max_batch_tokens)
        ids = random.integers(FIRST_ID, vocab_size, lengths.sum(), dtype=np.int32)
        encoder.encode_ids(Ragged.from_lengths(ids, lengths))
        if number % every == 0:
            free.append(free_bytes())
    return free


def soak_lengths(random: np.random.Generator, *, max_tokens: int, max_batch_tokens: int) -> NDArray[np.int64]:
    """Tokens of the sentences of one random batch: most are small, one in 200 is as large as a batch can be."""

    def spread(most: int, n: int) -> NDArray[np.int64]:
        return np.exp(random.uniform(0, np.log(most + 1), n)).astype(np.int64).clip(1, most)

    if random.random() < 1 / 200:
        longest = min(64, max_tokens)
        return random.integers(1, longest + 1, size=max(1, max_batch_tokens // longest))
    return spread(min(512, max_tokens), int(spread(64, 1)[0]))
