"""What `mexma parity` prints when it is done."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from mexma_export.cli.tables import open_console, optional, print_notes, verdict_table
from mexma_export.parity.breakdown import Side
from mexma_export.parity.figures import ParityFigures
from mexma_export.parity.gate import ReferenceVectors, Verdict
from mexma_export.parity.mining import MiningRow
from mexma_export.parity.report_json import parity_json
from mexma_runtime.terminal import print_json


def show_parity(
    verdicts: list[Verdict], reference: ReferenceVectors, *, by: Sequence[Side] = (), as_json: bool
) -> None:
    """The figures of each engine, by whatever is asked, its five worst sentences, and the tasks."""
    if as_json:
        print_json(parity_json(verdicts, reference))
        return
    console = open_console()
    console.print(verdict_table(verdicts))
    corpus = reference.corpus
    console.print(f"reference: {reference.description}; {corpus.name}, {len(corpus.texts)} sentences")
    print_notes(console, verdicts)
    for side in dict.fromkeys(by):
        _print_breakdowns(console, verdicts, side)
    for verdict in verdicts:
        console.print(f"{verdict.engine.name}, worst sentences:")
        for row in verdict.breakdown.worst:
            text = " ".join(corpus.texts[row.index].split())[:58]
            console.print(f"  {row.cosine:.9f}  [{row.index}] {text}")
    _print_mining(console, verdicts, reference)
    _print_sts(console, verdicts, reference)


def _print_breakdowns(console: Console, verdicts: list[Verdict], side: Side) -> None:
    for verdict in verdicts:
        is_length = side is Side.LENGTH
        parts = verdict.breakdown.by_length if is_length else verdict.breakdown.by_language
        if not parts:
            console.print("by language: the corpus does not say its languages (a .tsv or a folder does)")
            return
        table = Table("tokens" if is_length else "language", title=f"{verdict.engine.name} by {side}", box=SIMPLE)
        for name in ("n", "cos min", "cos mean", "err/dist mean", "top-1", "top-10"):
            table.add_column(name, justify="right")
        for name, figures in parts.items():
            table.add_row(name, *_part(figures))
        console.print(table)


def _part(figures: ParityFigures) -> list[str]:
    return [
        str(figures.n_sentences),
        f"{figures.cosine_min:.7f}",
        f"{figures.cosine_mean:.7f}",
        optional(figures.relative_error_mean, ".1e"),
        optional(figures.top1_agreement, ".4f"),
        optional(figures.top10_agreement, ".4f"),
    ]


def _print_mining(console: Console, verdicts: list[Verdict], reference: ReferenceVectors) -> None:
    if reference.mining is None:
        return
    found = [verdict.mining for verdict in verdicts if verdict.mining]
    title = f"xsim error rate in %, difference to the reference: {reference.mining.name}"
    table = Table("pair", title=title, box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("n", "ref.", *(verdict.engine.name.replace(".", "\n") for verdict in verdicts)):
        table.add_column(name, justify="right")
    for rows in zip(*(mining.rows for mining in found), strict=True):
        table.add_row(*_mining_cells(rows))
    table.add_section()
    table.add_row(*_mining_cells([mining.mean for mining in found]))
    console.print(table)


def _mining_cells(rows: Sequence[MiningRow]) -> list[str]:
    """One bitext, each engine's row of it."""
    first = rows[0]
    cells = [f"{100 * row.engine_error_rate:.2f} {100 * row.difference:+.2f}" for row in rows]
    return [first.name, str(first.n_sentences), f"{100 * first.reference_error_rate:.2f}", *cells]


def _print_sts(console: Console, verdicts: list[Verdict], reference: ReferenceVectors) -> None:
    if reference.sts is None:
        return
    table = Table("", box=SIMPLE, title=f"Spearman, {reference.sts.name}: {len(reference.sts.scores)} pairs")
    table.add_column("correlation", justify="right")
    table.add_column("difference", justify="right")
    table.add_row("reference", optional(reference.sts_correlation, ".4f"), "")
    for verdict in verdicts:
        if verdict.sts:
            cells = (optional(verdict.sts.engine, ".4f"), optional(verdict.sts.difference, "+.4f"))
            table.add_row(verdict.engine.name, *cells)
    console.print(table)
