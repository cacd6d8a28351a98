"""The sentences that engines are judged by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from mexma_export.corpus.sample import SampleLine, load_sample
from mexma_export.corpus.text_files import language_files
from mexma_runtime.errors import UsageError
from mexma_runtime.text.lines import file_lines
from mexma_runtime.types import Vectors

N_TEXTS, N_CHARACTERS = 96, 6_000
"""At most this much does the export gate read: enough to see a wrong graph, short enough for a CPU at full size."""

Embed = Callable[[Sequence[str]], Vectors]
"""Texts in, float32 `(n, dim)` out: an engine, or the reference."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Sentences, and what to call them in a certificate."""

    name: str
    texts: tuple[str, ...]
    languages: tuple[str, ...] | None = None
    """The language of each text, where they are known."""

    def __post_init__(self) -> None:
        if self.languages is not None and len(self.languages) != len(self.texts):
            raise UsageError(f"{self.name}: {len(self.texts)} texts and {len(self.languages)} languages")

    @property
    def sha256(self) -> str:
        """Of the sentences, one a line, in UTF-8.

        Languages are left out: a certificate's figures do not depend on them, so that one text has one hash whether it
        comes from a text file, a .tsv or a folder.
        """
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()


def sample_corpus() -> Corpus:
    """All sentences that ship with the package."""
    return corpus_of("mexma-runtime sample", load_sample())


def gate_corpus() -> Corpus:
    """The package's sentences, evenly thinned: every language and script, short to long."""
    lines = load_sample()
    thinned = (lines[::step] for step in count(1))
    few = next(few for few in thinned if len(few) <= N_TEXTS and sum(len(line.text) for line in few) <= N_CHARACTERS)
    return corpus_of("mexma-runtime sample, thinned", few)


def corpus_of(name: str, lines: Sequence[SampleLine]) -> Corpus:
    """Texts that ship with the package, as a corpus."""
    return Corpus(name=name, texts=tuple(line.text for line in lines), languages=tuple(line.lang for line in lines))


def read_corpus(path: Path) -> Corpus:
    """The sentences of a UTF-8 text file (one a line), a .tsv (language TAB text), or a folder of text files.

    Lines that are blank are passed over. In a folder the files' names say the language (`language_files`). UsageError
    where a line or a name cannot be understood, or there are fewer than two sentences; else errors as `file_lines`.
    """
    entries = _entries(path)
    if len(entries) < 2:
        raise UsageError(f"{path}: expected two sentences or more, one a line, got {len(entries)}")
    languages = tuple(language for language, _ in entries if language is not None)
    return Corpus(name=path.resolve().name, texts=tuple(text for _, text in entries), languages=languages or None)


def _entries(path: Path) -> list[tuple[str | None, str]]:
    """Language, where the kind of file tells it, and text."""
    if path.is_dir():
        return [
            (file.language, line) for file in language_files(path) for line in file_lines(file.path) if line.strip()
        ]
    lines = [(number, line) for number, line in enumerate(file_lines(path), start=1) if line.strip()]
    if path.suffix.lower() == ".tsv":
        return [_columns(path, number, line) for number, line in lines]
    return [(None, line) for _, line in lines]


def _columns(path: Path, number: int, line: str) -> tuple[str, str]:
    columns = line.split("\t")
    if len(columns) != 2 or not all(column.strip() for column in columns):
        raise UsageError(f"{path}, line {number}: expected language TAB text, got {line[:80]!r}")
    return columns[0].strip(), columns[1]
