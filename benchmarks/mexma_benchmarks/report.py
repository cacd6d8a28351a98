"""A result as Markdown, for the README. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mexma_benchmarks.environment import Environment
from mexma_benchmarks.result import ModelResult, Result, Timing
from mexma_benchmarks.timing import UNSTABLE_SPREAD, Estimate, differences, estimate_median, ratios, relative_spread

SMALL_COVERAGE = 0.95
BUSY_LOAD = 0.5


def markdown(result: Result) -> str:
    """Tables of everything measured, and what to doubt."""
    blocks = [_conditions(result), *(block for model in result.models for block in _model(model))]
    if warnings := list(unstable(result)):
        blocks.append("\n".join(["This run was unstable; measure again on an idle machine:", "", *warnings]))
    if not result.is_complete:
        blocks.append("This run did not finish: what it had not reached is missing.")
    return "\n\n".join(blocks) + "\n"


def unstable(result: Result) -> Iterable[str]:
    """A line for a machine that was busy, and for each subject whose pairs with the baseline differ much."""
    if result.environment.load_average > BUSY_LOAD:
        yield f"- {result.environment.load_average:.1f} processes were running already when it started"
    for model in result.models:
        for timing in model.timings:
            for subject, pairs in _pairs(timing).items():
                if relative_spread(pairs) > UNSTABLE_SPREAD:
                    yield (
                        f"- {model.name}, {timing.workload}, {subject}: the middle half of its ratios spans "
                        f"{relative_spread(pairs):.0%} of their median"
                    )


def _conditions(result: Result) -> str:
    e, hardware = result.environment, result.environment.hardware
    quota = "" if hardware.cpu_quota is None else f", quota {hardware.cpu_quota:g}"
    return (
        f"{hardware.processor}, {hardware.n_physical_cores} cores ({hardware.n_logical_cpus} logical{quota}), "
        f"{', '.join(hardware.instruction_sets)}; {result.n_threads} threads each; {_versions(e)}; "
        f"commit {e.commit or 'unknown'}; {e.started}.\n"
        f"`{' '.join(e.command)}`\n\n"
        "Medians with their 95 % order-statistic intervals; subjects took turns within each round, and a ratio is the "
        "median of the rounds' ratios. An interval marked * is of few rounds: it is their range."
    )


def _versions(environment: Environment) -> str:
    versions = {"Python": environment.python, **environment.versions}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _model(model: ModelResult) -> Iterable[str]:
    yield (
        f"### {model.name}: {model.n_layers} layers of {model.hidden_size}, {model.pooling} pooling\n\n"
        f"PyTorch is {model.reference}."
    )
    if measured := [timing for timing in model.timings if any(timing.samples_ms.values())]:
        head = ["workload", "subject", "ms", "sentences/s", "times as fast", "difference, ms"]
        yield _table(head, [row for timing in measured for row in _rows(timing)])
    if model.peak_rss_bytes:
        peaks = {who: f"{np.median(sizes) / 1e6:,.0f} MB" for who, sizes in model.peak_rss_bytes.items()}
        listed = ", ".join(f"{who} {peak}" for who, peak in peaks.items())
        yield f"Peak resident memory of a cold start, pages of mapped files included: {listed}."
    if model.fidelity:
        yield f"Vectors against PyTorch's: {model.fidelity_corpus}."
        yield _table(
            ["engine", "least cosine", "largest difference", "same nearest", "same ten nearest"],
            [
                [
                    engine,
                    f"{figures.cosine_min:.9f}",
                    f"{figures.max_abs_difference:.1e}",
                    _share(figures.top1_agreement),
                    _share(figures.top10_agreement),
                ]
                for engine, figures in model.fidelity.items()
            ],
        )


def _rows(timing: Timing) -> Iterable[list[str]]:
    baseline = timing.samples_ms[timing.baseline]
    pairs = _pairs(timing)
    for subject, samples in timing.samples_ms.items():
        estimate = estimate_median(samples)
        is_baseline = subject == timing.baseline
        yield [
            timing.workload,
            subject,
            _estimate(estimate, ".3g" if estimate.median < 100 else ".0f"),
            f"{timing.n_sentences / estimate.median * 1e3:.3g}" if timing.n_tokens else "",
            "1" if is_baseline else _estimate(estimate_median(pairs[subject]), ".2f"),
            "" if is_baseline else _estimate(estimate_median(differences(samples, baseline)), ".2f"),
        ]


def _pairs(timing: Timing) -> dict[str, list[float]]:
    """Subject -> baseline's time over its own, round by round; of subjects that have any."""
    baseline = timing.samples_ms.get(timing.baseline, [])
    others = {subject: samples for subject, samples in timing.samples_ms.items() if subject != timing.baseline}
    return {subject: ratios(baseline, samples) for subject, samples in others.items() if samples}


def _estimate(estimate: Estimate, spec: str) -> str:
    mark = "" if estimate.coverage >= SMALL_COVERAGE else "*"
    return f"{estimate.median:{spec}} [{estimate.low:{spec}}, {estimate.high:{spec}}]{mark}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
