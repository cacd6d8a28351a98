"""What a run found, as one table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from mexma_benchmarks.result.checks import Check, Verdict

STYLES = {
    Verdict.HOLDS: "green",
    Verdict.FALLS_SHORT: "bold red",
    Verdict.REPORTED: "default",
    Verdict.NOT_MEASURED: "yellow",
}


def checks_table(checks: Sequence[Check], *, title: str) -> Table:
    """A row a check."""
    table = Table(title=title)
    table.add_column("what")
    table.add_column("bar", justify="right")
    table.add_column("measured", overflow="fold")
    table.add_column("verdict")
    for check in checks:
        verdict = check.verdict
        table.add_row(
            Text(check.what), Text(bar_text(check)), Text(measured_text(check)), Text(verdict, style=STYLES[verdict])
        )
    return table


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
