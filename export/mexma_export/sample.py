"""The multilingual text that ships with the package: the stand-ins' tokenizer, calibration and the parity gate use it.

It was written for this project: 40 languages in 17 scripts, from queries of a word or two to paragraphs of 140.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, kw_only=True)
class SampleLine:
    """One text of the sample."""

    lang: str
    """BCP-47 language tag, such as `en` or `zh`."""
    text: str
    """One query, sentence or paragraph, without line breaks or tabs."""


def load_sample() -> tuple[SampleLine, ...]:
    """The whole sample, in the order of its file: grouped by language, no two texts the same."""
    rows = (files("mexma_export") / "data" / "sample.tsv").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return tuple(SampleLine(lang=lang, text=text) for lang, text in (row.split("\t") for row in rows))
