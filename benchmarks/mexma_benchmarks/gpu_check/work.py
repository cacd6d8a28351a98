"""Sentences of ids to embed, the same ones for ours and for PyTorch, and PyTorch's batches of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from mexma_benchmarks.result.estimates import ratios
from mexma_benchmarks.run.workload import FIRST_ID, draw_lengths
from mexma_export.checkpoint.config import ModelConfig
from mexma_runtime.batching import BatchPolicy, Grouping, make_batches
from mexma_runtime.types import Ragged

MAX_BATCH_TOKENS = 16_384
"""Of PyTorch's batches, padding included: enough to fill a large GPU, few enough to pad little."""
OURS = "ours"


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """What one call, or one round, embeds."""

    ragged: Ragged
    batches: list[NDArray[np.int64]]
    """Rows of each of PyTorch's batches, the longest sentences first."""

    @classmethod
    def of(cls, ragged: Ragged, *, max_batch_tokens: int = MAX_BATCH_TOKENS) -> Work:
        """Sorted by length and cut by a budget of padded tokens."""
        policy = BatchPolicy(max_batch_tokens=max_batch_tokens, grouping=Grouping.PADDED)
        return cls(ragged=ragged, batches=make_batches(ragged.lengths, policy))

    @property
    def n_tokens(self) -> int:
        """Special ones included, padding not."""
        return self.ragged.ids.size


def random_ids(lengths: Sequence[int] | NDArray[np.int64], vocab_size: int, *, seed: int = 0) -> Ragged:
    """Sentences of the lengths given, of seeded random ids."""
    ids = np.random.default_rng(seed).integers(FIRST_ID, vocab_size, sum(lengths), dtype=np.int32)
    return Ragged.from_lengths(ids, lengths)


def drawn_ids(n: int, vocab_size: int) -> Ragged:
    """Sentences as long as real ones: mean 11.6 tokens."""
    return random_ids(draw_lengths(n), vocab_size)


def repeated(ragged: Ragged, n: int) -> Ragged:
    """The sentences again and again, until they are `n`."""
    return ragged.take(np.arange(n) % len(ragged))


def soak_lengths(random: np.random.Generator, *, max_tokens: int, max_batch_tokens: int) -> NDArray[np.int64]:
    """Tokens of the sentences of one random batch: most are small, one in 200 is as large as a batch can be."""

    def spread(most: int, n: int) -> NDArray[np.int64]:
        return np.exp(random.uniform(0, np.log(most + 1), n)).astype(np.int64).clip(1, most)

    if random.random() < 1 / 200:
        longest = min(64, max_tokens)
        return random.integers(1, longest + 1, size=max(1, max_batch_tokens // longest))
    return spread(min(512, max_tokens), int(spread(64, 1)[0]))


def speedups(samples_ms: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """How many times as fast OURS is as each other: the median of the rounds' ratios."""
    ours = samples_ms[OURS]
    return {name: median(ratios(theirs, ours)) for name, theirs in samples_ms.items() if name != OURS}


def flop_a_token(config: ModelConfig) -> float:
    """2 for each multiplication of all linear layers. The last layer counts whole, attention's products do not."""
    hidden, ffn = config.hidden_size, config.ffn_size
    return 2.0 * config.n_layers * (4 * hidden * hidden + 2 * hidden * ffn)
