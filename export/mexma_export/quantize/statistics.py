"""What calibration keeps of one input: ranges, covariance and sampled tokens, however long the text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

N_SAMPLED = 640
"""Tokens drawn at random."""
BUFFER_TOKENS = 4096
"""Tokens gathered before their products are added up: adding a matrix costs more than a few more tokens in it."""
N_EXTREME = 64
"""Tokens kept beside them for the size of their largest outlier, in deviations of its channel."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class InputStatistics:
    """One input over all calibration text."""

    lowest: Floats
    """float32 `(channels,)`: the least number seen in each channel."""
    highest: Floats
    """float32 `(channels,)`."""
    covariance: NDArray[np.float64]
    """float64 `(channels, channels)`."""
    sample: Floats
    """float32 `(tokens, channels)`: random tokens and extreme ones."""
    sample_weights: Floats
    """float32 `(tokens,)`: how many tokens of the text each stands for."""

    @property
    def sample_share(self) -> Floats:
        """float32 `(tokens,)`: what share of the text each sampled token stands for."""
        share: Floats = self.sample_weights / self.sample_weights.sum()
        return share


class Observer:
    """Gathers InputStatistics of one input from batches of tokens."""

    def __init__(self, n_channels: int, weights: Floats, *, seed: int) -> None:
        """`weights`, float32 `(tokens,)`: how much each token counts that will be added, above 0.

        Which are sampled depends on them and on `seed` alone; those that count more are likelier.
        """
        self._weights = weights
        shares = weights.astype(np.float64) / weights.sum(dtype=np.float64)
        n_sampled = min(N_SAMPLED, len(weights))
        self._chosen = np.sort(np.random.default_rng(seed).choice(len(weights), n_sampled, replace=False, p=shares))
        self._sampled: list[Floats] = []
        self._extreme: list[tuple[float, int, Floats]] = []
        self._n_seen = 0
        self._lowest = np.full(n_channels, np.inf, np.float32)
        self._highest = np.full(n_channels, -np.inf, np.float32)
        self._buffer: list[Floats] = []
        self._n_buffered = 0
        self._weight = 0.0
        self._origin: Floats | None = None
        self._sum = np.zeros(n_channels)
        self._products = np.zeros((n_channels, n_channels))

    def add(self, x: Floats) -> None:
        """Look at more tokens: float32 `(tokens, channels)`, kept for a while."""
        self._buffer.append(x)
        self._n_buffered += len(x)
        if self._n_buffered >= BUFFER_TOKENS:
            self._flush()

    def _flush(self) -> None:
        x = np.concatenate(self._buffer)
        self._buffer, self._n_buffered = [], 0
        start, self._n_seen = self._n_seen, self._n_seen + len(x)
        np.minimum(self._lowest, x.min(axis=0), out=self._lowest)
        np.maximum(self._highest, x.max(axis=0), out=self._highest)
        if self._origin is None:
            self._origin = x.mean(axis=0)
        # Products of numbers far from zero, as outlier channels are, would drown the variance in float32's rounding.
        centred = x - self._origin
        weighted = centred * self._weights[start : self._n_seen, np.newaxis]
        self._weight += float(self._weights[start : self._n_seen].sum(dtype=np.float64))
        self._sum += weighted.sum(axis=0, dtype=np.float64)
        self._products += weighted.T @ centred
        first, end = np.searchsorted(self._chosen, [start, self._n_seen])
        chosen = self._chosen[first:end] - start
        self._sampled.append(x[chosen])
        others = np.delete(np.arange(len(x)), chosen)
        deviation = np.sqrt(np.diag(self._products) / self._weight + 1e-12).astype(np.float32)
        outliers = np.abs(centred[others] / deviation).max(axis=1)
        for row in np.argsort(-outliers, kind="stable")[:N_EXTREME]:
            self._extreme.append((float(outliers[row]), start + int(others[row]), x[others[row]].copy()))
        self._extreme = sorted(self._extreme, key=lambda kept: (-kept[0], kept[1]))[:N_EXTREME]

    def finish(self) -> InputStatistics:
        """The statistics of all that was added."""
        if self._buffer:
            self._flush()
        n = self._n_seen
        mean = self._sum / self._weight
        sampled, extreme = np.concatenate(self._sampled), [x for _, _, x in self._extreme]
        weights = [np.full(len(sampled), (n - len(extreme)) / len(sampled)), np.ones(len(extreme))]
        return InputStatistics(
            lowest=self._lowest,
            highest=self._highest,
            covariance=self._products / self._weight - np.outer(mean, mean),
            sample=np.concatenate([sampled, *(x[np.newaxis] for x in extreme)]),
            sample_weights=np.concatenate(weights).astype(np.float32),
        )
