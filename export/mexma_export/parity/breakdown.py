"""Parity figures of a whole corpus, by length and by language."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mexma_export.parity.figures import ParityFigures, RowFigures, WorstRow
from mexma_runtime.errors import UsageError
from mexma_runtime.types import Vectors

Key = TypeVar("Key", int, str)

SHORTEST_BUCKET = 8
"""Tokens of the longest sentences in the first bucket; each bucket after it reaches twice as far."""


class Side(StrEnum):
    """What figures are broken down by."""

    LENGTH = "length"
    LANGUAGE = "language"


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """One engine's vectors against a reference's, from several sides."""

    overall: ParityFigures
    by_length: dict[str, ParityFigures]
    """`1-8`, `9-16`, `17-32`, ... tokens, special ones included -> the sentences of such lengths, shortest first."""
    by_language: dict[str, ParityFigures]
    """Language -> its sentences, in the order in which languages first come up."""
    worst: list[WorstRow]
    """The five of lowest cosine."""


def judge_vectors(
    vectors: Vectors,
    reference: Vectors,
    *,
    lengths: Sequence[int] | NDArray[np.int64] | None = None,
    languages: Sequence[str] | None = None,
) -> Breakdown:
    """Compare float32 `(n, dim)` `vectors` with `reference` and break the figures down.

    `lengths`: `(n,)`, tokens a sentence; `languages`: n of them. What is not given is not broken down by.
    ParityError where vectors cannot be compared (`RowFigures.of`); UsageError where a count is not n.
    """
    for what, values in (("lengths", lengths), ("languages", languages)):
        if values is not None and len(values) != len(vectors):
            raise UsageError(f"{what}: expected one for each of {len(vectors)} vectors, got {len(values)}")
    rows = RowFigures.of(vectors, reference)
    longest = [_longest_of_bucket(length) for length in lengths] if lengths is not None else []
    return Breakdown(
        overall=rows.summary(),
        by_length={_bucket_name(key): rows.summary(among) for key, among in sorted(_grouped(longest).items())},
        by_language={key: rows.summary(among) for key, among in _grouped(languages or ()).items()},
        worst=rows.worst(),
    )


def _longest_of_bucket(length: int) -> int:
    return max(SHORTEST_BUCKET, 1 << (int(length) - 1).bit_length())


def _bucket_name(longest: int) -> str:
    return f"{1 if longest == SHORTEST_BUCKET else longest // 2 + 1}-{longest}"


def _grouped(keys: Iterable[Key]) -> dict[Key, list[int]]:
    """Key -> the rows that have it; keys in the order in which they first come up."""
    rows: dict[Key, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return rows
