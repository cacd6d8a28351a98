"""What can be said of samples: medians with intervals, quotients, tails, unrest, points that nothing beats. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from statistics import NormalDist

import numpy as np

MAX_COUNTED_PAIRS = 2500
"""Up to here Mann and Whitney's distribution is counted; beyond, the normal one is as good."""
UNSTABLE_SPREAD = 0.1
"""A `relative_spread` above this is unrest."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A median and an interval for it."""

    median: float
    low: float
    high: float
    coverage: float
    """Probability that the interval holds the true median; less than was asked for where samples were few."""
    n_samples: int


def estimate_median(samples: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The median of at least one sample, with its order-statistic interval, which assumes no distribution.

    The interval is `[x_(k), x_(n + 1 - k)]` of the sorted samples with the largest k that keeps the coverage,
    `1 - 2 P(Binomial(n, 1/2) < k)`, at `confidence`. Under six samples none does: it is then their whole range.
    """
    if not samples:
        raise ValueError("expected at least one sample")
    ordered, n = sorted(samples), len(samples)
    tails = [2 * count / 2**n for count in accumulate(math.comb(n, i) for i in range((n + 1) // 2))]
    k = max(1, sum(tail <= 1 - confidence for tail in tails))
    return Estimate(
        median=float(np.median(ordered)),
        low=ordered[k - 1],
        high=ordered[n - k],
        coverage=1 - tails[k - 1],
        n_samples=n,
    )


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Sample i over sample i: of one round of an interleaved run, so that what slows a whole round cancels."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def relative_spread(samples: Sequence[float]) -> float:
    """The middle half's width over the median."""
    low, median, high = np.quantile(samples, (0.25, 0.5, 0.75))
    return float((high - low) / median)


def estimate_quotient(numerators: Sequence[float], denominators: Sequence[float], confidence: float = 0.99) -> Estimate:
    """How many times as large `numerators` are as `denominators`: independent positive samples, at least one of each.

    The median of all quotients a / b, and the two quotients that Mann and Whitney's test puts around it: the estimate
    of Hodges and Lehmann for a shift, here of logarithms (Hollander, Wolfe and Chicken, Nonparametric Statistical
    Methods, 3rd ed., 4.2 and 4.3). Exact for any distribution that both share but for that factor. Where samples are
    too few for `confidence` the interval is the range of the quotients, and `coverage` says how little that is.
    """
    if not numerators or not denominators:
        raise ValueError("expected at least one sample of each")
    quotients = np.sort(np.divide.outer(np.asarray(numerators), np.asarray(denominators)), axis=None)
    k, coverage = _mann_whitney_rank(len(numerators), len(denominators), confidence)
    return Estimate(
        median=float(np.median(quotients)),
        low=float(quotients[k - 1]),
        high=float(quotients[-k]),
        coverage=coverage,
        n_samples=min(len(numerators), len(denominators)),
    )


@cache
def _mann_whitney_rank(m: int, n: int, confidence: float) -> tuple[int, float]:
    """The largest k, at least 1, with `1 - 2 P(U < k)` at `confidence`; and that coverage."""
    if m * n > MAX_COUNTED_PAIRS:
        law = NormalDist(m * n / 2, math.sqrt(m * n * (m + n + 1) / 12))
        k = max(1, int(law.inv_cdf((1 - confidence) / 2) + 0.5))  # U is a whole number
        return k, 1 - 2 * law.cdf(k - 0.5)
    # Orders that give each U: the coefficients of the Gaussian binomial, prod_i (1 - q^(n + i)) / (1 - q^i).
    n_ways = [1] + [0] * (m * n)
    for i in range(1, m + 1):
        for u in range(m * n, n + i - 1, -1):
            n_ways[u] -= n_ways[u - n - i]
        for u in range(i, m * n + 1):
            n_ways[u] += n_ways[u - i]
    tails = [2 * count / math.comb(m + n, m) for count in accumulate(n_ways[: (m * n + 1) // 2])]
    k = max(1, sum(tail <= 1 - confidence for tail in tails))
    return k, 1 - tails[k - 1]


def quantile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` of all do not exceed: one that was measured, not one between two."""
    return float(np.quantile(samples, share, method="inverted_cdf"))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in one coordinate and matches in the other, the first one ascending."""
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], points[i][1]), reverse=True):
        if not front or points[i][1] > points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front[::-1]
