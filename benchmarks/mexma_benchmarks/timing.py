"""Interleaved timing, and what can be said of its samples: medians with intervals, pairwise ratios, unrest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

PAUSE_S = 0.1
"""Lets the threads of one library fall asleep before another's turn: onnxruntime's wait busily for 10 to 50 ms."""
UNSTABLE_SPREAD = 0.1


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


def differences(samples: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Sample i less sample i, as in `ratios`."""
    return [a - b for a, b in zip(samples, baseline, strict=True)]


def relative_spread(samples: Sequence[float]) -> float:
    """The middle half's width over the median."""
    low, median, high = np.quantile(samples, (0.25, 0.5, 0.75))
    return float((high - low) / median)


def rounds(
    calls: Mapping[str, Callable[[], object]],
    *,
    warmups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[dict[str, float]]:
    """Run all `calls` once a round, without end: the ms of each. The order is reversed every other round.

    Warm-up rounds run first and are not seen.
    """
    names = list(calls)
    n_done = 0
    while True:
        taken_ms = {}
        for name in names:
            pause(PAUSE_S)
            start = clock()
            calls[name]()
            taken_ms[name] = (clock() - start) * 1e3
        names.reverse()
        n_done += 1
        if n_done > warmups:
            yield {name: taken_ms[name] for name in calls}
