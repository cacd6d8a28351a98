"""A comparison as text, for a terminal or as Markdown: the conclusion comes last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO

from mexma_benchmarks.report.formats import escape, number, optional, table
from mexma_benchmarks.result.compare import CONFIDENCE, Comparison, Difference, FidelityChange, SpeedChange


@dataclass(frozen=True, kw_only=True)
class _Block:
    """A table of plain text, and what there is to say about it."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    n_text: int
    note: str = ""


def render_comparison(comparison: Comparison, *, as_markdown: bool = False) -> str:
    """All that `compare` found: tables of rich's for a terminal, or Markdown."""
    blocks = list(_blocks(comparison))
    return "\n\n".join(map(_markdown, blocks)) + "\n" if as_markdown else _terminal(blocks)


def _blocks(comparison: Comparison) -> Iterator[_Block]:
    if comparison.hosts:
        yield _differing("Unlike hosts: times cannot be compared, and hardly ratios", comparison.hosts)
    if comparison.settings:
        yield _differing("Not the same", comparison.settings)
    if comparison.only_a or comparison.only_b:
        rows = [*(("A", what) for what in comparison.only_a), *(("B", what) for what in comparison.only_b)]
        yield _Block(title="Measured in one alone", head=("in", "what"), rows=rows, n_text=2)
    if comparison.fidelities:
        yield _Block(
            title="Fidelity",
            head=("model", "subject", "cosine min, A", "B", "cosine mean, A", "B", "ten nearest kept, A", "B"),
            rows=[_fidelity_row(change) for change in comparison.fidelities],
            n_text=2,
        )
    beyond = [change for change in comparison.speeds if change.is_beyond_noise]
    within = [change for change in comparison.speeds if not change.is_beyond_noise]
    if within:
        yield _speeds("Within the noise, or of too few rounds to tell", within)
    title = "Larger than the noise" + ("" if beyond else ": nothing")
    yield _speeds(title, sorted(beyond, key=lambda change: change.change.median), note=_note(comparison))


def _note(comparison: Comparison) -> str:
    n, alpha = len(comparison.speeds), 1 - CONFIDENCE
    few = sum(not change.has_enough for change in comparison.speeds)
    return (
        "A and B: times as fast as the baseline, and of the baseline itself ms. Change: how many times as fast B is as "
        f"A, with its {CONFIDENCE:.0%} interval; larger than the noise where that leaves out 1. {n} were compared, of "
        f"which some {n * alpha:.1f} would pass by chance"
        + (f"; {few} have too few rounds to tell (five in each are enough)." if few else ".")
        + " What changes from one start of a process to the next is in no interval: repeat both runs where it matters."
    )


def _differing(title: str, differences: Sequence[Difference]) -> _Block:
    return _Block(title=title, head=("what", "A", "B"), rows=[(d.what, d.a, d.b) for d in differences], n_text=3)


def _speeds(title: str, changes: Sequence[SpeedChange], note: str = "") -> _Block:
    head = ("model", "workload", "subject", "A", "B", "change")
    return _Block(title=title, head=head, rows=[_speed_row(change) for change in changes], n_text=3, note=note)


def _speed_row(change: SpeedChange) -> tuple[str, ...]:
    unit = " ms" if change.is_baseline else ""
    low, high = f"{change.change.low:.3f}", f"{change.change.high:.3f}"
    few = "" if change.has_enough else ", too few rounds"
    return (
        change.model,
        change.workload,
        change.subject,
        number(change.a.median) + unit,
        number(change.b.median) + unit,
        f"{change.change.median:.3f} [{low}, {high}]{few}",
    )


def _fidelity_row(change: FidelityChange) -> tuple[str, ...]:
    a, b = change.a, change.b
    return (
        change.model,
        change.subject,
        f"{a.cosine_min:.6f}",
        f"{b.cosine_min:.6f}",
        f"{a.cosine_mean:.6f}",
        f"{b.cosine_mean:.6f}",
        optional(a.top10_agreement, ".4f"),
        optional(b.top10_agreement, ".4f"),
    )


def _markdown(block: _Block) -> str:
    parts = [f"## {block.title}"]
    if block.rows:
        rows = [[*map(escape, row[: block.n_text]), *row[block.n_text :]] for row in block.rows]
        parts.append(table(block.head, rows, n_text=block.n_text))
    if block.note:
        parts.append(escape(block.note))
    return "\n\n".join(parts)


def _terminal(blocks: Sequence[_Block]) -> str:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    file = StringIO()
    # A terminal wraps, and a file has no right edge.
    console = Console(file=file, width=1000, soft_wrap=True, markup=False, emoji=False, highlight=False)
    for block in blocks:
        if block.rows:
            shown = Table(box=SIMPLE, title=Text(block.title, style="bold"), title_justify="left")
            for column, name in enumerate(block.head):
                shown.add_column(name, justify="left" if column < block.n_text else "right", overflow="fold")
            for row in block.rows:
                shown.add_row(*map(Text, row))
            console.print(shown)
        else:
            console.print(block.title)
        if block.note:
            console.print(block.note)
    return file.getvalue()
