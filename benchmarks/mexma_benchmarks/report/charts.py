"""The charts of a result: latency by length, throughput by batch, latency under load, fidelity against speed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mexma_benchmarks.report.axes import (
    MAX_LINES,
    RC,
    Point,
    add_legend,
    by_end,
    draw_lines,
    folded,
    keep_ticks,
    new_figure,
    set_log,
)
from mexma_benchmarks.report.labels import place_labels
from mexma_benchmarks.report.palette import INK, Style, styles
from mexma_benchmarks.result.estimates import pareto_front
from mexma_benchmarks.result.measured import fidelity_model, largest_model, load_points, main_texts, series
from mexma_benchmarks.result.result import ModelResult, Result
from mexma_runtime.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150
"""1380 pixels wide: GitHub shows some 830 of them, and text of 10 points is read there as of 9."""
SPEED_TICKS = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
FIDELITY = "fidelity"
"""Name of the chart that belongs to no one model."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One drawn chart."""

    name: str
    """Of its file, without suffix."""
    title: str
    figure: Figure

    def png(self) -> bytes:
        """The chart as PNG on white."""
        return self._saved("png", facecolor="white")

    def svg(self) -> str:
        """On nothing; text stays text."""
        return self._saved("svg", facecolor="none", metadata={"Date": None}).decode()

    def _saved(self, kind: str, **options: Any) -> bytes:
        import matplotlib

        file = BytesIO()
        with matplotlib.rc_context(RC):
            self.figure.savefig(file, format=kind, dpi=DPI, **options)
        return file.getvalue()


def draw_charts(result: Result) -> list[Chart]:
    """Every chart that the result has data for: those of each model, and fidelity against speed.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise MissingDependencyError("matplotlib", needed_for="the charts of a report", extra="bench") from None
    looks = styles(result.models)
    charts: list[Chart] = []
    with matplotlib.rc_context(RC):
        for model, slug in zip(result.models, slugs(result.models), strict=True):
            charts += _latency(model, slug, looks)
            charts += _throughput(model, slug, looks)
            charts += _load(model, slug, looks)
        charts += _fidelity(result.models, looks)
    return charts


def slugs(models: Sequence[ModelResult]) -> list[str]:
    """What files of each model are called by; no two are the same."""
    names = [re.sub(r"[^a-z0-9]+", "-", model.name.lower()).strip("-") or "model" for model in models]
    times = Counter(names)
    return [name if times[name] == 1 else f"{name}-{i}" for i, name in enumerate(names, start=1)]


def chosen(model: ModelResult, names: Sequence[str]) -> list[str]:
    """At most `MAX_LINES` of the subjects `names`: in turn two of ours, a baseline and a peer, as they are listed."""
    roles = {subject.name: subject.role for subject in model.subjects}
    by_role = [[name for name in names if roles.get(name, "peer") == role] for role in ("engine", "baseline", "peer")]
    rank = {
        name: (place if which else place // 2, which, place)
        for which, among in enumerate(by_role)
        for place, name in enumerate(among)
    }
    return sorted(names, key=rank.__getitem__)[:MAX_LINES]


def _latency(model: ModelResult, slug: str, looks: Mapping[str, Style]) -> Iterator[Chart]:
    lines: dict[str, list[Point]] = {}
    for one in series(model):
        if one.workload.kind == "ids" and one.workload.batch == 1 and one.workload.length:
            lines.setdefault(one.subject, []).append((one.workload.length, one.ms.median))
    if lengths := _several(lines):
        title = "Latency of one sentence by its length"
        figure = new_figure(title, _subtitle(model, lines))
        ax = figure.add_subplot(xlabel="tokens", ylabel="ms, median")
        draw_lines(ax, {name: lines[name] for name in chosen(model, list(lines))}, looks)
        set_log(ax, "x", lengths)
        set_log(ax, "y")
        add_legend(figure, by_end(ax.lines))
        yield Chart(name=f"latency-{slug}", title=f"{title}, {model.name}", figure=figure)


def _throughput(model: ModelResult, slug: str, looks: Mapping[str, Style]) -> Iterator[Chart]:
    """Of the length that was measured in most batch sizes."""
    shapes: dict[int, dict[str, list[Point]]] = {}
    for one in series(model):
        if one.workload.kind == "ids" and one.workload.batch and one.workload.length:
            lines = shapes.setdefault(one.workload.length, {})
            lines.setdefault(one.subject, []).append((one.workload.batch, one.tokens_per_s))
    if not shapes:
        return
    length = max(shapes, key=lambda length: (len(_several(shapes[length])), length))
    if batches := _several(lines := shapes[length]):
        title = f"Throughput by batch, sentences of {length} tokens"
        figure = new_figure(title, _subtitle(model, lines))
        ax = figure.add_subplot(xlabel="sentences in a batch", ylabel="tokens/s, median")
        draw_lines(ax, {name: lines[name] for name in chosen(model, list(lines))}, looks)
        set_log(ax, "x", batches)
        ax.set_ylim(bottom=0)
        keep_ticks(ax, *ax.get_ylim())
        ax.yaxis.set_major_formatter("{x:,.0f}")
        add_legend(figure, by_end(ax.lines))
        yield Chart(name=f"throughput-{slug}", title=f"{title}, {model.name}", figure=figure)


def _load(model: ModelResult, slug: str, looks: Mapping[str, Style]) -> Iterator[Chart]:
    points = load_points(model)
    middle: dict[str, list[Point]] = {}
    tail: dict[str, list[Point]] = {}
    for point in points:
        middle.setdefault(point.subject, []).append((point.rate_per_s, point.p50))
        tail.setdefault(point.subject, []).append((point.rate_per_s, point.p99))
    if not (rates := _several(middle)):
        return
    title = "Latency under load"
    figure = new_figure(title, _subtitle(model, middle))
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for ax, name, lines in ((left, "p50", middle), (right, "p99", tail)):
        ax.set(title=name, xlabel="texts arriving a second")
        draw_lines(ax, {name: lines[name] for name in chosen(model, list(lines))}, looks)
    left.set_ylabel("ms from scheduled arrival")
    if bound := model.p99_bound_ms:
        right.axhline(bound, color=INK, linewidth=0.8, linestyle=":", label=f"bound on p99: {bound:,.0f} ms")
    set_log(left, "x", rates, gap=0.16)  # a panel is half as wide
    set_log(left, "y")
    add_legend(figure, by_end(right.lines))
    yield Chart(name=f"load-{slug}", title=f"{title}, {model.name}", figure=figure)


def _fidelity(models: Sequence[ModelResult], looks: Mapping[str, Style]) -> Iterator[Chart]:
    """The neighbours that a subject keeps, on trained weights, against its speed on the largest model."""
    fast, faithful = largest_model([model for model in models if main_texts(model)]), fidelity_model(models)
    if fast is None or faithful is None:
        return
    points = fidelity_points(fast, faithful)
    if len(points) < 2:
        return
    title = "Fidelity against speed"
    figure = new_figure(title, f"speed on {fast.name}, neighbours on {faithful.name}")
    ax = figure.add_subplot(xlabel=f"times as fast as {fast.baseline}, texts in", ylabel="ten nearest neighbours kept")
    names = sorted(points, key=lambda name: -points[name][0])
    front = [list(points)[i] for i in pareto_front(list(points.values()))]
    stairs = _stairs([points[name] for name in front])
    draw_lines(ax, {name: [points[name]] for name in names}, looks)
    uncertified = {s.name for s in faithful.subjects if s.fidelity and s.fidelity.uncertified}
    for name, line in zip(names, ax.lines, strict=True):
        line.set(linestyle="none", markersize=9)
        if name in uncertified:
            line.set_label(folded(f"{name} (uncertified)"))
    ax.plot(*zip(*stairs, strict=True), color=INK, linestyle=":", label="Pareto front", zorder=1)
    ax.margins(x=0.15)
    lost = max(1 - min(y for _, y in points.values()), 1e-3)
    ax.set_ylim(1 - 1.2 * lost, 1 + 0.2 * lost)  # room for names above those that lose nothing
    keep_ticks(ax, 1 - 1.2 * lost, 1 + 1e-9)
    ax.yaxis.set_major_formatter("{x:.0%}" if lost > 0.05 else "{x:.1%}" if lost > 0.005 else "{x:.2%}")
    set_log(ax, "x", SPEED_TICKS)
    ax.xaxis.set_major_formatter("{x:g}x")
    add_legend(figure, ax.lines)
    place_labels(figure, ax, points, front, stairs)
    yield Chart(name=FIDELITY, title=f"{title}: {fast.name}, {faithful.name}", figure=figure)


def _subtitle(model: ModelResult, lines: Mapping[str, Sequence[Point]]) -> str:
    return model.name if len(lines) <= MAX_LINES else f"{model.name}, {MAX_LINES} of {len(lines)} subjects"


def fidelity_points(fast: ModelResult, faithful: ModelResult) -> dict[str, Point]:
    """Subject -> (times as fast as the baseline of `fast`, ten nearest kept on `faithful`), where both are known."""
    kept = {s.name: s.fidelity.figures.top10_agreement for s in faithful.subjects if s.fidelity}
    points = {}
    for one in main_texts(fast):
        agreement = kept.get(one.subject)
        if agreement is not None and (one.speedup or one.subject == fast.baseline):
            points[one.subject] = (one.speedup.median if one.speedup else 1.0, agreement)
    return points


def _stairs(front: Sequence[Point]) -> list[Point]:
    """The border of what the points of a front reach: beyond each, the next one's fidelity is the best there is."""
    corners = [(left[0], right[1]) for left, right in pairwise(front)]
    return [front[0], *(point for pair in zip(corners, front[1:], strict=True) for point in pair)]


def _several(lines: Mapping[str, Sequence[Point]]) -> list[float]:
    """Where the lines have points; empty for one place only, which makes no line."""
    places = sorted({x for points in lines.values() for x, _ in points})
    return places if len(places) > 1 else []
