"""The steps that let the suite measure: ours beside PyTorch, MiniLM's vectors, and what is slow to start."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from statistics import median
from typing import Any

from mexma_benchmarks.gpu_check import bars
from mexma_benchmarks.gpu_check.bars import Measured
from mexma_benchmarks.gpu_check.lineup import VECTORS
from mexma_benchmarks.gpu_check.steps import Setup
from mexma_benchmarks.result.checks import Record, not_measured
from mexma_benchmarks.run.models import MINILM_PACKAGE, minilm_source

N_PRODUCTS = 10


def measure_first(setup: Setup, record: Record) -> None:
    """Vectors, latency and rates of ours, and of what is quick to start."""
    lineup, measured = setup.lineup, measured_so_far(setup)
    subjects = [lineup.ours, *lineup.first]
    try:
        setup.measure(setup.prepared, subjects, setup.model, setup.sizes.run)
    finally:
        record.checks += [
            *bars.vector_bars(setup.model, subjects, least=bars.MIN_COSINE),
            *bars.latency_bars(measured),
            *bars.rate_bars(measured),
            *bars.speed_bars(measured, [lineup.baseline, *subjects]),
            *bars.by_length_bars(measured),
        ]


def measure_late(setup: Setup, record: Record) -> None:
    """Ours beside what takes long to compile, and beside peers."""
    lineup = setup.lineup
    try:
        setup.measure(setup.prepared, [lineup.ours, *lineup.late], setup.model, setup.sizes.of_late)
    finally:
        record.checks += bars.speed_bars(measured_so_far(setup), lineup.late)


def measure_products(setup: Setup, record: Record) -> None:
    """The card's own rate of products, and the share of it that ours reaches."""
    rates = product_flop_per_s(setup.device)
    record.samples["products_flop_per_s"] = rates
    record.checks.append(bars.share_bar(measured_so_far(setup), median(rates), setup.prepared.checkpoint.config))


def check_minilm(setup: Setup, record: Record) -> None:
    """Trained weights, where they are installed."""
    if (reason := minilm_problem()) is not None:
        record.checks.append(not_measured("MiniLM, trained weights", reason, is_excused=True))
        return
    prepared = setup.prepare(minilm_source(), "minilm")
    lineup, model = setup.lineup, setup.model_of(prepared)
    engines = [
        replace(one, measured=VECTORS)
        for one in (lineup.ours, *lineup.first)
        if one.measured >= VECTORS and one.role == "engine"
    ]
    setup.measure(prepared, engines, model, setup.sizes.of_vectors)
    record.checks += bars.vector_bars(model, engines, least=bars.MIN_COSINE_MINILM)


def minilm_problem() -> str | None:
    """Why MiniLM cannot be measured; None where it can."""
    is_there = find_spec(MINILM_PACKAGE.replace("-", "_")) is not None
    return None if is_there else f"{MINILM_PACKAGE} is not installed"


def product_flop_per_s(device: str, n: int = 8192) -> list[float]:
    """FLOP/s of fp16 products of two random matrices `(n, n)` by torch.mm, each timed by the device's own clock."""
    import torch

    a, b = (torch.randn(n, n, dtype=torch.float16, device=device) for _ in range(2))
    rates = []
    for _ in range(3):
        torch.mm(a, b)
    make_event: Any = torch.cuda.Event
    for _ in range(N_PRODUCTS):
        start, end = (make_event(enable_timing=True) for _ in range(2))
        start.record()
        torch.mm(a, b)
        end.record()
        torch.cuda.synchronize(device)
        rates.append(2 * n**3 / (start.elapsed_time(end) / 1e3))
    del a, b
    torch.cuda.empty_cache()
    return rates


def measured_so_far(setup: Setup) -> Measured:
    """Of the checkpoint that was asked for."""
    return Measured(model=setup.model, lineup=setup.lineup, sizes=setup.sizes)
