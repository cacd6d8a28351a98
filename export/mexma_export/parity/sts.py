"""STS: do an engine's cosines still rank pairs of sentences as people did?"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mexma_export.corpus.corpus import Embed
from mexma_export.parity.figures import pair_cosines
from mexma_export.parity.neighbours import Doubles
from mexma_runtime.errors import UsageError
from mexma_runtime.text.lines import file_lines


@dataclass(frozen=True, kw_only=True, eq=False)
class StsPairs:
    """Pairs of sentences and how alike people found them."""

    name: str
    scores: tuple[float, ...]
    """Higher is more alike, in any unit: only their order matters."""
    first: tuple[str, ...]
    second: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Of the pairs, `score TAB first TAB second`, one a line, in UTF-8."""
        rows = zip(self.scores, self.first, self.second, strict=True)
        return hashlib.sha256("\n".join(f"{score}\t{a}\t{b}" for score, a, b in rows).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class StsFigures:
    """Spearman's correlation of cosine and score: of an engine beside the reference's."""

    n_pairs: int
    engine: float | None
    """-1 to 1. None: all cosines are the same."""
    reference: float | None

    @property
    def difference(self) -> float | None:
        """The engine's less the reference's: below 0 where the engine is worse."""
        return None if self.engine is None or self.reference is None else self.engine - self.reference


def read_sts(path: Path) -> StsPairs:
    """Read a UTF-8 file of lines `score TAB sentence TAB sentence`.

    A first line of three columns, the first of them a word, is a header. Blank lines are passed over. UsageError names
    the line that cannot be understood; two scores or more must differ.
    """
    rows = [
        _row(path, number, line)
        for number, line in enumerate(file_lines(path), start=1)
        if line.strip() and not (number == 1 and _is_header(line))
    ]
    scores, first, second = zip(*rows, strict=True) if rows else ((), (), ())
    if len(set(scores)) < 2:
        raise UsageError(f"{path}: expected two different scores or more, got {len(set(scores))} in {len(rows)} pairs")
    return StsPairs(name=path.name, scores=scores, first=first, second=second)


def measure_sts(pairs: StsPairs, embed: Embed) -> float | None:
    """Spearman's correlation of the pairs' cosines with their scores. ParityError for vectors without a direction."""
    return spearman(pair_cosines(embed(pairs.first), embed(pairs.second)), pairs.scores)


def spearman(a: ArrayLike, b: ArrayLike) -> float | None:
    """Spearman's rank correlation of two samples `(n,)`: Pearson's of their ranks, equal values sharing the mean rank.

    None where all values of a sample are the same.
    """
    x, y = _ranks(np.asarray(a)), _ranks(np.asarray(b))
    x -= x.mean()
    y -= y.mean()
    spread = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / spread if spread else None


def _ranks(values: NDArray[Any]) -> Doubles:
    """Ranks from 1, the mean of the places that equal values take."""
    _, place, n_equal = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Doubles = (np.cumsum(n_equal) - (n_equal - 1) / 2)[place]
    return ranks


def _is_header(line: str) -> bool:
    columns = line.split("\t")
    try:
        float(columns[0])
    except ValueError:
        return len(columns) == 3 and any(character.isalpha() for character in columns[0])
    return False


def _row(path: Path, number: int, line: str) -> tuple[float, str, str]:
    columns = line.split("\t")
    try:
        score, first, second = columns
        value = float(score)
    except ValueError:
        value, first, second = math.nan, "", ""
    if not math.isfinite(value) or not first.strip() or not second.strip():
        raise UsageError(f"{path}, line {number}: expected score TAB sentence TAB sentence, got {line[:80]!r}")
    return value, first, second
