"""The sentences that engines are judged by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from mexma_export.sample import load_sample
from mexma_runtime.errors import UsageError

N_TEXTS, N_CHARACTERS = 96, 6_000
"""At most this much does the export gate read: enough to see a wrong graph, short enough for a CPU at full size."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Sentences, and what to call them in a certificate."""

    name: str
    texts: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Of the sentences, one a line, in UTF-8."""
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()


def sample_corpus() -> Corpus:
    """All sentences that ship with the package."""
    return Corpus(name="mexma-runtime sample", texts=tuple(line.text for line in load_sample()))


def gate_corpus() -> Corpus:
    """The package's sentences, evenly thinned: every language and script, short to long."""
    lines = sample_corpus().texts
    thinned = (lines[::step] for step in count(1))
    texts = next(few for few in thinned if len(few) <= N_TEXTS and sum(map(len, few)) <= N_CHARACTERS)
    return Corpus(name="mexma-runtime sample, thinned", texts=texts)


def read_corpus(path: Path) -> Corpus:
    """The lines of a UTF-8 file that are not blank; UsageError where there are fewer than two."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    texts = tuple(line.rstrip("\r") for line in lines if line.strip())
    if len(texts) < 2:
        raise UsageError(f"{path}: expected two sentences or more, one a line, got {len(texts)}")
    return Corpus(name=path.name, texts=texts)
