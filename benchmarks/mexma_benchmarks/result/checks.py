"""Checks: what was measured, the bar that it is held against, and the verdict that follows. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

_FOLDERS = re.compile(r"(?<![^\s'\"(=,])~?/(?:[^/\s'\":,;()]+/)*(?=[^/\s'\":,;()])")
"""What stands before the last part of an absolute path; a URL has none."""


class Verdict(StrEnum):
    """What a row says."""

    HOLDS = "holds"
    FALLS_SHORT = "falls short"
    REPORTED = "reported"
    """There is no bar."""
    NOT_MEASURED = "not measured"
    """And nobody asked for it here."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What is asked of a number."""

    relation: Literal[">=", "<="]
    value: float

    def is_met_by(self, measured: float) -> bool:
        """Whether `measured` will do; NaN never does."""
        return measured >= self.value if self.relation == ">=" else measured <= self.value


def at_least(value: float) -> Bar:
    """`>= value`."""
    return Bar(relation=">=", value=value)


def at_most(value: float) -> Bar:
    """`<= value`."""
    return Bar(relation="<=", value=value)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One number, or why there is none."""

    what: str
    unit: str = ""
    """Of `measured` and of the bar."""
    bar: Bar | None = None
    measured: float | None = None
    note: str = ""
    """What stands beside the number, or the reason why there is none."""
    is_excused: bool = False
    """Whether there need not be a number."""

    @property
    def verdict(self) -> Verdict:
        """What follows from the rest."""
        if self.measured is None:
            return Verdict.NOT_MEASURED if self.is_excused else Verdict.FALLS_SHORT
        if self.bar is None:
            return Verdict.REPORTED
        return Verdict.HOLDS if self.bar.is_met_by(self.measured) else Verdict.FALLS_SHORT


@dataclass(kw_only=True)
class Record:
    """What one step found; it grows while the step runs, so that a failure leaves what came before it."""

    step: str
    checks: list[Check] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)
    """Raw, ready for JSON; names carry the unit."""
    seconds: float = 0.0


def without_folders(text: str) -> str:
    """`text` with absolute paths by their last part alone: folders of a machine are nobody's business."""
    return _FOLDERS.sub("", text)


def failed(what: str, error: BaseException) -> Check:
    """A row for what ended in an exception."""
    return Check(what=what, note=without_folders(f"failed: {type(error).__name__}: {error}"))


def not_measured(what: str, reason: str, *, is_excused: bool) -> Check:
    """A row for what was not done."""
    return Check(what=what, note=f"not measured: {reason}", is_excused=is_excused)


def exit_code(checks: Iterable[Check]) -> int:
    """1 where any of them falls short, or there are none; else 0."""
    verdicts = [check.verdict for check in checks]
    return int(not verdicts or Verdict.FALLS_SHORT in verdicts)
