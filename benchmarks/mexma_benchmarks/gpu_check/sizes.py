"""How much is measured: in full, and as little as shows that everything runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Counts of one run."""

    n_rounds: int
    """Of ours and PyTorch in turns, for rates."""
    n_sentences: int
    """A round of drawn lengths, or of text."""
    n_judged: int
    """Sentences of the package's sample that are held against PyTorch's, at most."""
    n_alike: int
    """Sentences of 128 tokens in a batch."""
    n_alike_batches: int
    """A round."""
    n_alone: int
    """Sentences that are embedded alone too."""
    n_batch_mates: int
    """Sentences that they are embedded with."""
    n_latency_rounds: int
    n_calls: int
    """Of ours in a round of latency."""
    n_pytorch_calls: int
    """Of PyTorch there: it takes longer."""
    n_soak_batches: int
    n_settling_batches: int
    """Of the soak, before memory has to stay as it is."""
    matrix_size: int
    """Rows and columns of the matrices whose product gives the card's own rate."""


FULL = Sizes(
    n_rounds=5,
    n_sentences=32_768,
    n_judged=10_000,
    n_alike=512,
    n_alike_batches=4,
    n_alone=64,
    n_batch_mates=4096,
    n_latency_rounds=10,
    n_calls=100,
    n_pytorch_calls=30,
    n_soak_batches=10_000,
    n_settling_batches=1000,
    matrix_size=8192,
)
QUICK = Sizes(
    n_rounds=2,
    n_sentences=128,
    n_judged=40,
    n_alike=8,
    n_alike_batches=1,
    n_alone=4,
    n_batch_mates=64,
    n_latency_rounds=2,
    n_calls=5,
    n_pytorch_calls=3,
    n_soak_batches=40,
    n_settling_batches=10,
    matrix_size=256,
)
