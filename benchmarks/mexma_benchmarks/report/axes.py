"""Figures and axes as all charts have them: a line a subject, log scales with plain numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mexma_benchmarks.report.palette import INK, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Point = tuple[float, float]

MAX_LINES = 18
"""More cannot be told apart."""
WIDTH_INCHES, HEIGHT_INCHES = 9.2, 5.0
LEGEND_LINE_INCHES = 0.19
RC: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "figure.titleweight": "bold",
    "figure.titlesize": 11,
    "font.size": 10,
    "grid.color": "#8c959f",
    "grid.alpha": 0.3,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 3,
    "svg.fonttype": "none",
    "svg.hashsalt": "mexma",
    "text.parse_math": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def new_figure(title: str, subtitle: str) -> Figure:
    """An empty figure under its title; `subtitle` takes as many lines as it needs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES))
    figure.suptitle(f"{title}\n{textwrap.fill(subtitle, 56)}", x=0.01, ha="left")
    return figure


def draw_lines(ax: Axes, lines: Mapping[str, Sequence[Point]], looks: Mapping[str, Style]) -> None:
    """A line with markers for each subject; ours on top."""
    for subject, points in lines.items():
        look = looks[subject]
        ax.plot(
            *zip(*sorted(points), strict=True),
            color=look.colour,
            label=folded(subject),
            linestyle=look.dashes,
            linewidth=look.width,
            marker=look.marker,
            markerfacecolor=look.face,
            zorder={"peer": 2, "baseline": 3, "engine": 4}[look.role],
        )


def folded(subject: str) -> str:
    """Its name in lines of a legend's width; a backend stays behind its "on"."""
    return textwrap.fill(subject.replace(" on ", " on\N{NO-BREAK SPACE}"), 36).replace("\N{NO-BREAK SPACE}", " ")


def add_legend(figure: Figure, lines: Sequence[Line2D]) -> None:
    """What each line is, right of the panels; the figure grows where it must."""
    figure.legend(handles=lines, loc="outside right upper")
    n_lines = sum(str(line.get_label()).count("\n") + 1 for line in lines)
    figure.set_figheight(max(HEIGHT_INCHES, 0.5 + LEGEND_LINE_INCHES * n_lines))


def by_end(lines: Sequence[Line2D]) -> list[Line2D]:
    """The one that ends highest first, as a reader sees them."""
    return sorted(lines, key=lambda line: -float(np.asarray(line.get_ydata())[-1]))


def keep_ticks(ax: Axes, low: float, high: float) -> None:
    """No ticks on y but those within `low` and `high`."""
    ax.set_yticks([tick for tick in ax.get_yticks() if low <= tick <= high])


def set_log(ax: Axes, which: Literal["x", "y"], ticks: Sequence[float] | None = None, *, gap: float = 0.07) -> None:
    """A log scale with plain numbers: 1, 2 and 5 times powers of ten, or those of `ticks` that are `gap` axes apart."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    axis = ax.xaxis if which == "x" else ax.yaxis
    low, high = axis.get_view_interval()
    if ticks is None:
        powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        ticks = [digit * 10.0**power for power, digit in product(powers, (1, 2, 5))]
    shown: list[float] = []
    for tick in ticks:
        if low <= tick <= high and (not shown or np.log(tick / shown[-1]) > gap * np.log(high / low)):
            shown.append(tick)
    axis.set_major_locator(FixedLocator(shown))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"))
    axis.set_minor_locator(NullLocator())
