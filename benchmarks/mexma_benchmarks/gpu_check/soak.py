"""The step on memory: thousands of batches of random shapes, and what is free of the device meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mexma_benchmarks.result.checks import Check, at_most
from mexma_benchmarks.gpu_check.run import Record
from mexma_benchmarks.gpu_check.setup import Setup
from mexma_benchmarks.gpu_check.work import random_ids, soak_lengths
from mexma_runtime import Encoder

N_SAMPLES = 100
"""Looks at the memory."""
MIB = 1 << 20


def measure_soak(setup: Setup, record: Record) -> None:
    """One row: by how much less is free at the end than after the first batches."""
    import torch

    setup.end_pytorch()
    n, n_settling = setup.sizes.n_soak_batches, setup.sizes.n_settling_batches
    every = max(1, n // N_SAMPLES)
    free = soak(
        setup.encoder,
        setup.bundle.manifest.model.vocab_size,
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
        encoder.encode_ids(random_ids(lengths, vocab_size, seed=number))
        if number % every == 0:
            free.append(free_bytes())
    return free
