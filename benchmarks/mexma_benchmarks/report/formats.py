"""Numbers as a reader wants them, and Markdown that says what it is given: nothing in a result can become markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mexma_benchmarks.result.estimates import Estimate

FULL_COVERAGE = 0.95
NOTHING = "-"

_MARKUP = re.compile(r"[\\`*<>\[\]|~&#!]|(?<![a-zA-Z0-9])_|_(?![a-zA-Z0-9])")


def escape(text: str) -> str:
    """Any text as one line of Markdown that reads as that text."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def code(text: str) -> str:
    """Any text as one code span, for a paragraph."""
    text = " ".join(text.split())
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, n_text: int = 1) -> str:
    """A table of cells that are Markdown already; the columns from `n_text` on are numbers, set to the right."""
    rule = ["---" if column < n_text else "---:" for column in range(len(head))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *rows))


def listing(items: Sequence[str]) -> str:
    """A list of items that are Markdown already."""
    return "\n".join(f"- {item}" for item in items)


def number(value: float) -> str:
    """Three digits that count, or all before the point."""
    return f"{value:,.{decimals(value)}f}"


def decimals(value: float) -> int:
    """Places behind the point that leave three digits that count."""
    return 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3


def interval(estimate: Estimate, places: int | None = None) -> str:
    """`median [low, high]`, with a * where the samples were too few for 95 %."""
    places = decimals(estimate.median) if places is None else places
    mark = "" if estimate.coverage >= FULL_COVERAGE else "*"
    return f"{estimate.median:,.{places}f} [{estimate.low:,.{places}f}, {estimate.high:,.{places}f}]{mark}"


def megabytes(n_bytes: float | None) -> str:
    """Millions of bytes."""
    return NOTHING if n_bytes is None else f"{n_bytes / 1e6:,.0f} MB"


def optional(value: float | None, spec: str) -> str:
    """The number, or a dash."""
    return NOTHING if value is None else format(value, spec)
