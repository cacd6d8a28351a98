"""Who took part with one model and how fast they were, as Markdown: a section a kind of measurement. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mexma_benchmarks.report.formats import NOTHING, escape, interval, listing, megabytes, number, table
from mexma_benchmarks.result.measured import LoadPoint, Series, highest_rate, load_points, series
from mexma_benchmarks.result.result import ModelResult, SubjectResult, Workload

MAX_COLUMNS = 6
"""Shapes side by side in one table."""
STAGES = ("tokenize", "copy", "compute")
MIN_REQUESTS_P99 = 100
MAX_REASON = 300
"""Characters of a failure that are shown; the result has all."""


def subjects(model: ModelResult) -> Iterator[str]:
    """What took part, what it is, and what is missing and why."""
    if not model.subjects:
        return
    has_gpu = any(subject.device_bytes is not None for subject in model.subjects)
    head = ["subject", "role", "versions", "runs on", "batches", "on disk", "made in", "peak memory", "after all"]
    rows = [_subject_row(subject, has_gpu=has_gpu) for subject in model.subjects]
    yield "### Subjects"
    yield table([*head, *(["GPU memory"] if has_gpu else [])], rows, n_text=5)
    yield (
        "On disk: all that it needs to run. Made in: the time to convert the checkpoint, - where it is run as it is or "
        "was converted before. Peak memory: resident after the first vector of a cold start, mapped files too, and "
        "after all workloads of one process."
    )
    # The others' reasons are in their rows.
    lost = [subject for subject in model.subjects if subject.reason and subject.versions]
    if lost:
        yield "Not all of these was measured:"
        yield listing([f"{escape(subject.name)}, {_state(subject)}" for subject in lost])


def _subject_row(subject: SubjectResult, *, has_gpu: bool) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in subject.versions.items())
    peak = float(np.median(subject.peak_rss_bytes)) if subject.peak_rss_bytes else None
    return [
        escape(subject.name),
        "ours" if subject.role == "engine" else subject.role,
        escape(versions) or _state(subject),
        escape(subject.provider) or NOTHING,
        escape(subject.batching) or NOTHING,
        megabytes(subject.disk_bytes),
        NOTHING if subject.prepare_s is None else f"{subject.prepare_s:,.0f} s",
        megabytes(peak),
        megabytes(subject.peak_rss_after_bytes),
        *([megabytes(subject.device_bytes)] if has_gpu else []),
    ]


def _state(subject: SubjectResult) -> str:
    if subject.status == "measured" and not subject.reason:
        return NOTHING
    reason = " ".join((subject.reason or "no reason known").split())
    shown = reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]} ..."
    return f"{subject.status}: {escape(shown)}"


def ids_in(model: ModelResult, charts: Sequence[str]) -> Iterator[str]:
    """Fixed shapes: times, ratios and rates, up to six shapes a table."""
    measured = [one for one in series(model) if one.workload.kind == "ids"]
    if not measured:
        return
    workloads = sorted({one.workload for one in measured}, key=lambda w: (w.batch or 0, w.length or 0, w.name))
    yield "### Token ids in"
    yield "Tokenization excluded. Columns are a batch of sentences x tokens, or ids that each library makes batches of."
    for start in range(0, len(workloads), MAX_COLUMNS):
        yield from _shape_tables(model, measured, workloads[start : start + MAX_COLUMNS])
    yield from _not_offered(model, "ids")
    yield from charts


def _shape_tables(model: ModelResult, measured: Sequence[Series], workloads: Sequence[Workload]) -> Iterator[str]:
    cells = {(one.subject, one.workload): one for one in measured}
    names = [
        name for name in dict.fromkeys(one.subject for one in measured) if any((name, w) in cells for w in workloads)
    ]
    shapes = [escape(workload.name.removesuffix(" tokens")) for workload in workloads]
    yield "Milliseconds:"
    rows = [
        [
            escape(name),
            *(interval(cells[name, w].ms) if (name, w) in cells else NOTHING for w in workloads),
            _span([len(cells[name, w].samples_ms) for w in workloads if (name, w) in cells]),
        ]
        for name in names
    ]
    yield table(["subject", *shapes, "rounds"], rows)
    yield f"Times as fast as {escape(model.baseline)}:"
    rows = [
        [escape(name), *(speedup(model, cells.get((name, w))) for w in workloads)]
        for name in names
        if name != model.baseline
    ]
    yield table(["subject", *shapes], rows)
    yield "Tokens a second (sentences a second):"
    rows = [[escape(name), *(_rates(cells.get((name, w))) for w in workloads)] for name in names]
    yield table(["subject", *shapes], rows)


def texts_in(model: ModelResult) -> Iterator[str]:
    """Text to vectors, as a user of each library would: one table a workload."""
    measured = [one for one in series(model) if one.workload.kind == "texts"]
    if not measured:
        return
    yield "### Texts in"
    yield "Tokenization included; every library makes its own batches (see Subjects). Padding is never counted."
    for workload in dict.fromkeys(one.workload for one in measured):
        rows = [one for one in measured if one.workload == workload]
        has_stages = any(one.stages_ms for one in rows)
        size = f"{_count(workload.n_sentences, 'sentence')}, {_count(workload.n_tokens, 'token')}"
        yield f"{escape(workload.name)}: {size}."
        head = ["subject", "ms", "times as fast", "sentences/s", "tokens/s", "rounds"]
        yield table(
            [*head, *([" / ".join(STAGES) + ", ms"] if has_stages else [])],
            [
                [
                    escape(one.subject),
                    interval(one.ms),
                    speedup(model, one),
                    number(one.sentences_per_s),
                    number(one.tokens_per_s),
                    str(len(one.samples_ms)),
                    *([_stages(one)] if has_stages else []),
                ]
                for one in rows
            ],
        )
        if has_stages:
            yield (
                "The split is the median of each part, where a library tells them apart. Parts overlap where texts are "
                "tokenized while others are computed."
            )
    yield from _not_offered(model, "texts")


def cold_start(model: ModelResult) -> Iterator[str]:
    """From no process to a vector."""
    measured = [one for one in series(model) if one.workload.kind == "cold start"]
    if not measured:
        return
    peaks = {subject.name: subject.peak_rss_bytes for subject in model.subjects}
    yield "### Cold start"
    yield f"{escape(measured[0].workload.name.capitalize())}, one process at a time, its files in memory already."
    yield table(
        ["subject", "ms", "times as fast", "peak memory", "starts"],
        [
            [
                escape(one.subject),
                interval(one.ms),
                speedup(model, one),
                megabytes(float(np.median(peaks[one.subject])) if peaks.get(one.subject) else None),
                str(len(one.samples_ms)),
            ]
            for one in measured
        ],
    )


def under_load(model: ModelResult, charts: Sequence[str]) -> Iterator[str]:
    """Latency at rates of arrival, and the highest that keeps the bound."""
    points = load_points(model)
    if not points:
        return
    has_p999 = any(point.p999 is not None for point in points)
    yield "### Under load"
    yield (
        "Single texts arrive as from independent users (Poisson), whether the subject is ready or not; a latency runs "
        "from the scheduled arrival to the vector, waiting included."
    )
    if (bound := model.p99_bound_ms) is not None:
        rates = {
            name: highest_rate([point for point in points if point.subject == name], bound)
            for name in dict.fromkeys(point.subject for point in points)
        }
        yield f"Highest rate, among those measured, that kept p99 within {number(bound)} ms:"
        yield table(
            ["subject", "texts/s"],
            [[escape(name), "none" if rate is None else number(rate)] for name, rate in rates.items()],
        )
    yield from charts
    yield "All rates; latencies in ms:"
    yield table(
        ["subject", "texts/s", "requests", "p50", "p90", "p99", *(["p99.9"] if has_p999 else [])],
        [_load_row(point, has_p999=has_p999) for point in points],
    )
    yield from _load_notes(points)


def _load_row(point: LoadPoint, *, has_p999: bool) -> list[str]:
    return [
        escape(point.subject),
        number(point.rate_per_s),
        f"{point.n_requests:,}" + ("†" if point.was_given_up else ""),
        number(point.p50),
        number(point.p90),
        number(point.p99) + ("\\*" if point.n_requests < MIN_REQUESTS_P99 else ""),
        *([NOTHING if point.p999 is None else number(point.p999)] if has_p999 else []),
    ]


def _load_notes(points: Sequence[LoadPoint]) -> Iterator[str]:
    if any(point.n_requests < MIN_REQUESTS_P99 for point in points):
        yield f"\\* Of fewer than {MIN_REQUESTS_P99} requests: the slowest one."
    if any(point.was_given_up for point in points):
        yield "† Given up, since it fell ever further behind: the longer it lasts, the larger its latencies."


def speedup(model: ModelResult, one: Series | None) -> str:
    """How many times as fast as the baseline, as a table shows it."""
    if one is None:
        return NOTHING
    if one.subject == model.baseline:
        return "1"
    return interval(one.speedup, 2) if one.speedup else NOTHING


def _rates(one: Series | None) -> str:
    return NOTHING if one is None else f"{number(one.tokens_per_s)} ({number(one.sentences_per_s)})"


def _stages(one: Series) -> str:
    if not one.stages_ms:
        return NOTHING
    parts = [[stages[part] for stages in one.stages_ms if part in stages] for part in STAGES]
    return " / ".join(number(float(np.median(ms))) if ms else NOTHING for ms in parts)


def _span(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _not_offered(model: ModelResult, kind: str) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for timing in model.timings:
        if timing.workload.kind == kind:
            for name, reason in timing.not_offered.items():
                reasons.setdefault(reason, []).append(name)
    if reasons:
        yield listing(
            [
                f"Without: {', '.join(map(escape, dict.fromkeys(names)))} ({escape(why)})"
                for why, names in reasons.items()
            ]
        )
