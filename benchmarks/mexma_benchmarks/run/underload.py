"""Latency under load: Poisson arrivals at rising rates, until a bound on the 99th percentile breaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mexma_benchmarks.adapters.load import poisson_arrivals
from mexma_benchmarks.result.estimates import quantile
from mexma_benchmarks.result.result import LoadRun, ModelResult
from mexma_benchmarks.run.heat import Heat
from mexma_benchmarks.run.sizes import RunSizes

SEED = 0
N_DOUBLINGS = 3
"""How often the highest of the relative rates is doubled where it did not break the bound."""
MAX_REQUESTS = 12_000
"""Enough for a 99.9th percentile; a run at a high rate is shorter for it."""
PATIENCE = 20
"""A run ends when a request has taken so many times the bound: its subject falls behind for good."""


def search_rates(
    p99_at: Callable[[float], float | None], rates: Sequence[float], bound: float, *, n_refinements: int
) -> None:
    """Call `p99_at` with ascending rates up to the first that breaks `bound`, then between it and the last good one.

    None from `p99_at` ends the search: the subject has failed.
    """
    kept, broken = 0.0, None
    for rate in rates:
        p99 = p99_at(rate)
        if p99 is None:
            return
        if p99 > bound:
            broken = rate
            break
        kept = rate
    if broken is None:
        return
    for _ in range(n_refinements):
        between = (kept + broken) / 2
        p99 = p99_at(between)
        if p99 is None:
            return
        kept, broken = (kept, between) if p99 > bound else (between, broken)


def measure_load(
    heat: Heat,
    names: Sequence[str],
    texts: Sequence[str],
    sizes: RunSizes,
    model: ModelResult,
    *,
    one_text_ms: float,
    report: Callable[[str, float], None],
) -> None:
    """Put each of `names` under load, one at a time; `one_text_ms` is what the baseline takes for one text."""
    bound_ms = model.p99_bound_ms = sizes.p99_bound_ms or 4 * one_text_ms
    rates = sizes.rates_per_s
    if not rates:
        last = sizes.relative_rates[-1]
        multiples = (*sizes.relative_rates, *(last * 2**i for i in range(1, N_DOUBLINGS + 1)))
        rates = tuple(float(f"{multiple * 1e3 / one_text_ms:.2g}") for multiple in multiples)
    for name in names:

        def p99_at(rate: float, name: str = name) -> float | None:
            report(name, rate)
            duration_s = min(sizes.load_s, MAX_REQUESTS / rate)
            arrivals_s = poisson_arrivals(rate, duration_s, SEED)
            request = {"do": "serve_load", "texts": texts, "arrivals_s": arrivals_s}
            answer = heat.ask(name, request | {"patience_s": PATIENCE * bound_ms / 1e3})
            if answer is None:
                return None
            run = LoadRun(
                subject=name,
                rate_per_s=rate,
                duration_s=duration_s,
                seed=SEED,
                n_arrivals=len(arrivals_s),
                latencies_ms=answer["latencies_ms"],
            )
            model.load_runs.append(run)
            return quantile(run.latencies_ms, 0.99)

        search_rates(p99_at, rates, bound_ms, n_refinements=sizes.n_refinements)
