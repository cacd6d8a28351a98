"""What was measured of each subject, brought together from the heats it ran in. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mexma_benchmarks.result.estimates import Estimate, estimate_median, quantile, ratios
from mexma_benchmarks.result.result import BesideRun, ClientRun, LoadRun, ModelResult, Timing, Workload

MIN_REQUESTS_P999 = 10_000
"""Fewer have no ten that are slower than the 99.9th percentile."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One subject on one workload; at least one sample."""

    workload: Workload
    subject: str
    samples_ms: list[float]
    """Of all heats."""
    speedups: list[float]
    """Of each round, the baseline's time over the subject's own; empty for the baseline itself."""
    stages_ms: list[dict[str, float]]

    @property
    def ms(self) -> Estimate:
        """Median time, in milliseconds."""
        return estimate_median(self.samples_ms)

    @property
    def speedup(self) -> Estimate | None:
        """How many times as fast as the baseline; None for the baseline, and where no round of it was shared."""
        return estimate_median(self.speedups) if self.speedups else None

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second, padding not counted."""
        return self.workload.n_tokens / self.ms.median * 1e3

    @property
    def sentences_per_s(self) -> float:
        """Sentences of the workload over the median time."""
        return self.workload.n_sentences / self.ms.median * 1e3


@dataclass(frozen=True, kw_only=True)
class LoadPoint:
    """One subject at one arrival rate; ms."""

    subject: str
    rate_per_s: float
    n_requests: int
    """That were served."""
    was_given_up: bool
    """The subject fell so far behind that not all were sent: the percentiles would have grown further."""
    p50: float
    p90: float
    p99: float
    p999: float | None
    """None under `MIN_REQUESTS_P999` requests."""


@dataclass(frozen=True, kw_only=True)
class ClientPoint:
    """One subject and one kind of clients in a closed loop."""

    subject: str
    clients: str
    """`threads` or `coroutines`."""
    n_clients: int
    texts_a_call: int
    texts_per_s: Estimate
    """Of the rounds."""
    share: float | None
    """Of the rate of one caller who has as many texts in each call as there are callers here; the rounds' median."""
    p50: float
    p99: float
    """Of calls; ms."""


@dataclass(frozen=True, kw_only=True)
class BesidePoint:
    """Single texts of one subject beside a caller that never stops; ms."""

    subject: str
    n_texts: int
    every_ms: float
    n_requests: int
    alone: float
    """The median of single texts alone."""
    batch: float | None
    """The median of the fullest batch; None: its size is unknown."""
    p50: float
    p99: float


def subject_names(model: ModelResult) -> list[str]:
    """All subjects: the baseline first, then as they were listed."""
    listed = [subject.name for subject in model.subjects]
    names = dict.fromkeys([*listed, *model.timed, *(run.subject for run in model.load_runs)])
    return sorted(names, key=lambda name: name != model.baseline)


def series(model: ModelResult) -> list[Series]:
    """Every workload of every subject that has samples, in the order of workloads and then of `subject_names`."""
    found = []
    for workload in dict.fromkeys(timing.workload for timing in model.timings):
        timings = [timing for timing in model.timings if timing.workload == workload]
        for name in subject_names(model):
            if samples := [ms for timing in timings for ms in timing.samples_ms.get(name, [])]:
                found.append(
                    Series(
                        workload=workload,
                        subject=name,
                        samples_ms=samples,
                        speedups=times_as_fast(timings, name, model.baseline) if name != model.baseline else [],
                        stages_ms=[stages for timing in timings for stages in timing.stages_ms.get(name, []) if stages],
                    )
                )
    return found


def times_as_fast(timings: Iterable[Timing], name: str, other: str) -> list[float]:
    """Of each round of one workload that both took part in, the other's time over `name`'s."""
    found: list[float] = []
    for timing in timings:
        found += _of_shared_rounds(timing.samples_ms.get(other, []), timing.samples_ms.get(name, []))
    return found


def _of_shared_rounds(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Their ratios; rounds end early for a subject that fails."""
    shared = min(len(numerators), len(denominators))
    return ratios(numerators[:shared], denominators[:shared])


def load_points(model: ModelResult) -> list[LoadPoint]:
    """Of each subject its rates, ascending; in the order of `subject_names`."""
    runs: dict[tuple[str, float], list[LoadRun]] = {}
    for run in model.load_runs:
        if run.latencies_ms:
            runs.setdefault((run.subject, run.rate_per_s), []).append(run)
    rank = {name: place for place, name in enumerate(subject_names(model))}
    return [
        _load_point(subject, rate, runs[subject, rate])
        for subject, rate in sorted(runs, key=lambda key: (rank[key[0]], key[1]))
    ]


def _load_point(subject: str, rate_per_s: float, runs: Sequence[LoadRun]) -> LoadPoint:
    ms = [latency for run in runs for latency in run.latencies_ms]
    return LoadPoint(
        subject=subject,
        rate_per_s=rate_per_s,
        n_requests=len(ms),
        was_given_up=any(len(run.latencies_ms) < run.n_arrivals for run in runs),
        p50=quantile(ms, 0.5),
        p90=quantile(ms, 0.9),
        p99=quantile(ms, 0.99),
        p999=quantile(ms, 0.999) if len(ms) >= MIN_REQUESTS_P999 else None,
    )


def client_points(model: ModelResult) -> list[ClientPoint]:
    """Each kind of clients of each subject, in the order in which they were measured."""
    runs: dict[tuple[str, str, int, int], list[ClientRun]] = {}
    for run in model.client_runs:
        runs.setdefault((run.subject, run.clients, run.n_clients, run.texts_a_call), []).append(run)
    rates = {
        kind: [len(run.latencies_ms) * run.texts_a_call / run.seconds for run in rounds]
        for kind, rounds in runs.items()
    }
    points = []
    for kind, rounds in runs.items():
        subject, clients, n_clients, texts_a_call = kind
        ms = [latency for run in rounds for latency in run.latencies_ms]
        together = rates.get((subject, "threads", 1, n_clients), []) if n_clients > 1 else []
        shares = _of_shared_rounds(rates[kind], together)
        points.append(
            ClientPoint(
                subject=subject,
                clients=clients,
                n_clients=n_clients,
                texts_a_call=texts_a_call,
                texts_per_s=estimate_median(rates[kind]),
                share=quantile(shares, 0.5) if shares else None,
                p50=quantile(ms, 0.5),
                p99=quantile(ms, 0.99),
            )
        )
    return points


def beside_points(model: ModelResult) -> list[BesidePoint]:
    """Of each subject, all rounds together."""
    runs: dict[tuple[str, int, float], list[BesideRun]] = {}
    for run in model.beside_runs:
        runs.setdefault((run.subject, run.n_texts, run.every_ms), []).append(run)
    points = []
    for (subject, n_texts, every_ms), rounds in runs.items():
        ms = [latency for run in rounds for latency in run.latencies_ms]
        batch_ms = [batch for run in rounds for batch in run.batch_ms]
        points.append(
            BesidePoint(
                subject=subject,
                n_texts=n_texts,
                every_ms=every_ms,
                n_requests=len(ms),
                alone=quantile([alone for run in rounds for alone in run.alone_ms], 0.5),
                batch=quantile(batch_ms, 0.5) if batch_ms else None,
                p50=quantile(ms, 0.5),
                p99=quantile(ms, 0.99),
            )
        )
    return points


def highest_rate(points: Iterable[LoadPoint], bound_ms: float) -> float | None:
    """The highest of the points' rates whose p99 is within the bound; None: not one is."""
    kept = (point.rate_per_s for point in points if point.p99 <= bound_ms and not point.was_given_up)
    return max(kept, default=None)


def largest_model(models: Iterable[ModelResult]) -> ModelResult | None:
    """The one whose layers hold most; the speed of it is what counts."""
    return max(models, key=lambda model: model.n_layers * model.hidden_size**2, default=None)


def fidelity_model(models: Iterable[ModelResult]) -> ModelResult | None:
    """The largest with trained weights and fidelity measured; a stand-in only where there is no other."""
    judged = [model for model in models if any(subject.fidelity for subject in model.subjects)]
    return largest_model([model for model in judged if not model.is_standin] or judged)


def main_texts(model: ModelResult) -> list[Series]:
    """The model's texts-in workload with most sentences, of every subject."""
    texts = [one for one in series(model) if one.workload.kind == "texts"]
    largest = max((one.workload.n_sentences for one in texts), default=0)
    workload = next((one.workload for one in texts if one.workload.n_sentences == largest), None)
    return [one for one in texts if one.workload == workload]
