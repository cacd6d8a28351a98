"""The multilingual texts that ship with the package: to judge engines by, and to calibrate int8.

The sample was written for this project: 40 languages in 17 scripts, from queries of a word or two to paragraphs of 140.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, kw_only=True)
class SampleLine:
    """One text."""

    lang: str
    """BCP-47 language tag, such as `en` or `zh`."""
    text: str
    """One query, sentence or paragraph, without line breaks or tabs."""


def load_sample() -> tuple[SampleLine, ...]:
    """The whole sample, in the order of its file: grouped by language, no two texts the same."""
    return _load("sample.tsv")


def load_calibration_text() -> tuple[SampleLine, ...]:
    """The calibration text in the same form: no text of it is in the sample."""
    return _load("calibration.tsv")


def _load(name: str) -> tuple[SampleLine, ...]:
    rows = (files("mexma_export") / "data" / name).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return tuple(SampleLine(lang=lang, text=text) for lang, text in (row.split("\t") for row in rows))
