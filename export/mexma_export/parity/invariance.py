"""Batch invariance: is a sentence's vector the same whatever it is embedded with?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mexma_export.corpus.corpus import Embed
from mexma_export.parity.figures import InvarianceFigures, batch_invariance
from mexma_runtime.types import Vectors

N_ALONE, N_MIXED, N_SHUFFLED = 8, 32, 256
"""At most so many sentences are embedded again by themselves, in one call, and in another order."""
SHUFFLE_SEED = 0


@dataclass(frozen=True, kw_only=True)
class BatchInvariance:
    """What batch-mates change: the corpus, embedded in its own order, against the same sentences otherwise."""

    alone: InvarianceFigures
    """One sentence a call."""
    mixed: InvarianceFigures
    """A few sentences in one call, the shortest to the longest."""
    shuffled: InvarianceFigures
    """The corpus, or 256 sentences of it, in another order."""

    @property
    def worst(self) -> InvarianceFigures:
        """The worst of all three, which thresholds look at."""
        ways = (self.alone, self.mixed, self.shuffled)
        return InvarianceFigures(
            cosine_min=min(way.cosine_min for way in ways),
            max_abs_difference=max(way.max_abs_difference for way in ways),
        )


def measure_invariance(
    embed: Embed, texts: Sequence[str], lengths: NDArray[np.int64], vectors: Vectors
) -> BatchInvariance:
    """Embed some of `texts` again: alone, in one call (both from the shortest to the longest), and in another order.

    `vectors`: float32 `(n, dim)`, what `embed` gave for all texts in their own order; `lengths`: `(n,)`, their tokens.
    How a call's sentences become batches is the embedder's business: on a CPU ours are of equal lengths, unpadded.
    Raises as `RowFigures.of`.
    """
    n = len(texts)
    by_length = np.argsort(lengths, kind="stable")

    def spread(k: int) -> NDArray[np.int64]:
        return by_length[np.linspace(0, n - 1, min(k, n)).round().astype(np.int64)]

    def among(rows: NDArray[np.int64]) -> InvarianceFigures:
        return batch_invariance(vectors[rows], embed([texts[row] for row in rows]))

    few = spread(N_ALONE)
    alone = np.concatenate([embed([texts[row]]) for row in few])
    return BatchInvariance(
        alone=batch_invariance(alone, vectors[few]),
        mixed=among(spread(N_MIXED)),
        shuffled=among(np.random.default_rng(SHUFFLE_SEED).permutation(n)[:N_SHUFFLED]),
    )


def n_texts_again(n: int) -> int:
    """Texts that `measure_invariance` embeds, of `n`."""
    return sum(min(most, n) for most in (N_ALONE, N_MIXED, N_SHUFFLED))
