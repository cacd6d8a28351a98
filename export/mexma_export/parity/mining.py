"""Mining: does an engine still find the translations that the reference finds? xsim over a folder of parallel files."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mexma_export.corpus.corpus import Embed
from mexma_export.corpus.text_files import LanguageFile, language_files
from mexma_export.parity.xsim import require_faiss, xsim_errors
from mexma_runtime.errors import UsageError
from mexma_runtime.text.lines import file_lines
from mexma_runtime.types import Vectors

PIVOT = "eng"


@dataclass(frozen=True, kw_only=True, eq=False)
class Bitext:
    """Two line-parallel texts: line i of both is one sentence."""

    name: str
    """`deu-eng`; with the files' own name in front where a folder has one pair twice."""
    source: tuple[str, ...]
    target: tuple[str, ...]
    """The very object of other bitexts' `target` where it is one file: it is then embedded once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MiningCorpus:
    """All bitexts of a folder."""

    name: str
    bitexts: tuple[Bitext, ...]

    @property
    def sha256(self) -> str:
        """Of the bitexts' names and lines, as one JSON list."""
        rows = [[bitext.name, bitext.source, bitext.target] for bitext in self.bitexts]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    @property
    def n_texts(self) -> int:
        """Texts that are embedded."""
        texts = {id(side): len(side) for bitext in self.bitexts for side in (bitext.source, bitext.target)}
        return sum(texts.values())


@dataclass(frozen=True, kw_only=True)
class MiningRow:
    """One bitext, the source's sentences looking for their translations in the target."""

    name: str
    n_sentences: int
    engine_error_rate: float
    """Share of the source's sentences, 0 to 1."""
    reference_error_rate: float

    @property
    def difference(self) -> float:
        """The engine's rate less the reference's: above 0 where the engine is worse."""
        return self.engine_error_rate - self.reference_error_rate


@dataclass(frozen=True, kw_only=True)
class MiningFigures:
    """xsim of an engine beside the reference's."""

    rows: tuple[MiningRow, ...]

    @property
    def mean(self) -> MiningRow:
        """The plain mean of the rows' rates: each bitext counts the same, long or short."""
        n = len(self.rows)
        return MiningRow(
            name="mean",
            n_sentences=sum(row.n_sentences for row in self.rows),
            engine_error_rate=sum(row.engine_error_rate for row in self.rows) / n,
            reference_error_rate=sum(row.reference_error_rate for row in self.rows) / n,
        )


def read_mining(folder: Path, *, pivot: str | None = None, n_lines: int | None = None) -> MiningCorpus:
    """The bitexts of a folder: `NAME.SOURCE-TARGET.SOURCE` beside `NAME.SOURCE-TARGET.TARGET`, or `LANGUAGE.txt`.

    Of the latter each language is a source and `pivot` (unless told otherwise, eng) every one's target. `n_lines`: the
    first lines alone. Raises UsageError where a partner is missing, line counts differ, or a line is blank; and
    MissingDependencyError, before any work is done, where xsim cannot be computed.
    """
    require_faiss()
    if n_lines is not None and n_lines < 2:
        raise UsageError(f"--mining-lines: expected 2 or more, got {n_lines}")
    if not folder.is_dir():
        raise UsageError(f"{folder}: expected a folder of parallel files")
    files = language_files(folder)
    if files[0].pair is None:
        pairs = _against_pivot(folder, files, PIVOT if pivot is None else pivot)
    elif pivot is not None:
        raise UsageError(f"--mining-pivot {pivot}: the files of {folder} are pairs: each names its own languages")
    else:
        pairs = _partners(files)
    texts = {file.path: _sentences(file.path) for pair in pairs.values() for file in pair}
    for source, target in pairs.values():
        if len(texts[source.path]) != len(texts[target.path]):
            raise UsageError(
                f"{source.path} has {len(texts[source.path])} lines and {target.path.name} "
                f"{len(texts[target.path])}: expected line N of both to be one sentence"
            )
    few = {path: lines[:n_lines] for path, lines in texts.items()}
    return MiningCorpus(
        name=folder.resolve().name,
        bitexts=tuple(
            Bitext(name=name, source=few[source.path], target=few[target.path])
            for name, (source, target) in pairs.items()
        ),
    )


def measure_mining(corpus: MiningCorpus, embed: Embed) -> list[int]:
    """Errors of each bitext (`xsim_errors`). No more than two texts' vectors are held at a time, each embedded once."""
    errors: list[int] = []
    texts: tuple[str, ...] = ()
    target: Vectors = np.empty((0, 0), dtype=np.float32)
    for bitext in corpus.bitexts:
        if bitext.target is not texts:
            texts, target = bitext.target, embed(bitext.target)
        errors.append(xsim_errors(embed(bitext.source), target, texts))
    return errors


def compare_mining(corpus: MiningCorpus, engine_errors: list[int], reference_errors: list[int]) -> MiningFigures:
    """What `measure_mining` counted for an engine and for the reference, as rates."""
    rows = zip(corpus.bitexts, engine_errors, reference_errors, strict=True)
    return MiningFigures(
        rows=tuple(
            MiningRow(
                name=bitext.name,
                n_sentences=len(bitext.source),
                engine_error_rate=engine / len(bitext.source),
                reference_error_rate=reference / len(bitext.source),
            )
            for bitext, engine, reference in rows
        )
    )


def _against_pivot(folder: Path, files: list[LanguageFile], pivot: str) -> dict[str, tuple[LanguageFile, LanguageFile]]:
    """Name -> source and target."""
    by_language = {file.language: file for file in files}
    if pivot not in by_language or len(files) < 2:
        raise UsageError(
            f"{folder}: expected {pivot}.txt, which every language is held against, and another: it has "
            f"{', '.join(by_language)} (--mining-pivot names another one)"
        )
    target = by_language.pop(pivot)
    return {f"{language}-{pivot}": (source, target) for language, source in by_language.items()}


def _partners(files: list[LanguageFile]) -> dict[str, tuple[LanguageFile, LanguageFile]]:
    sides: dict[str, dict[str, LanguageFile]] = {}
    for file in files:
        sides.setdefault(file.path.stem, {})[file.language] = file
    names = Counter("-".join(file.pair) for file in files if file.pair)
    pairs = {}
    for stem, by_language in sides.items():
        file = next(iter(by_language.values()))
        assert file.pair
        if missing := [language for language in file.pair if language not in by_language]:
            raise UsageError(f"{file.path}: its partner {stem}.{missing[0]} is not there")
        name = "-".join(file.pair)
        pairs[name if names[name] == 2 else stem] = (by_language[file.pair[0]], by_language[file.pair[1]])
    return pairs


def _sentences(path: Path) -> tuple[str, ...]:
    lines = file_lines(path)
    blank = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if blank:
        raise UsageError(f"{path}, line {blank[0]}: blank, one of {len(blank)}: a sentence is needed on every line")
    if len(lines) < 2:
        raise UsageError(f"{path}: expected two lines or more, got {len(lines)}")
    return tuple(lines)
