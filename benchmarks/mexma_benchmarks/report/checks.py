"""Checks against bars, as a table for a terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mexma_benchmarks.report.formats import escape, table
from mexma_benchmarks.result.checks import Check, Record, Verdict

if TYPE_CHECKING:
    from rich.table import Table

HEAD = ("what", "bar", "measured", "verdict")
STYLES = {
    Verdict.HOLDS: "green",
    Verdict.FALLS_SHORT: "bold red",
    Verdict.REPORTED: "default",
    Verdict.NOT_MEASURED: "yellow",
}


def checks_table(checks: Sequence[Check], *, title: str) -> Table:
    """A row a check, for a terminal."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=Text(title))
    for column in HEAD:
        shown.add_column(column, justify="right" if column == "bar" else "left", overflow="fold")
    for check in checks:
        *cells, verdict = _row(check)
        shown.add_row(*map(Text, cells), Text(verdict, style=STYLES[check.verdict]))
    return shown


def checks_section(records: Sequence[Record]) -> Iterator[str]:
    """The checks of all steps, and how long each step took."""
    checks = [check for record in records for check in record.checks]
    if not checks:
        return
    n_short = sum(check.verdict is Verdict.FALLS_SHORT for check in checks)
    yield "## Checks"
    yield f"{n_short} of {len(checks)} fall short." if n_short else "None falls short."
    yield table(HEAD, [[escape(cell) for cell in _row(check)] for check in checks], n_text=len(HEAD))
    yield "Seconds of each step: " + "; ".join(f"{escape(record.step)}: {record.seconds:.0f}" for record in records)


def _row(check: Check) -> tuple[str, str, str, str]:
    return check.what, bar_text(check), measured_text(check), check.verdict.value


def bar_text(check: Check) -> str:
    """`<= 1 ms`."""
    return f"{check.bar.relation} {number(check.bar.value)} {check.unit}".strip() if check.bar else ""


def measured_text(check: Check) -> str:
    """`0.93 ms, NOTE`; the note alone where there is no number."""
    value = "" if check.measured is None else f"{number(check.measured)} {check.unit}".strip()
    return ", ".join(part for part in (value, check.note) if part)


def number(value: float) -> str:
    """Thousands apart; cosines near 1 with all the nines that count; else four digits."""
    if 0.99 < value < 1:
        return f"{value:.6f}".rstrip("0").rstrip(".")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
