"""How far an engine's vectors are from a reference's: figures alone. What is good enough: thresholds.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mexma_export.parity.neighbours import Doubles, agreement, blocks
from mexma_runtime.errors import ParityError
from mexma_runtime.types import Vectors


@dataclass(frozen=True, kw_only=True)
class ParityFigures:
    """An engine's vectors against a reference's, over a corpus or some sentences of it.

    Plain numbers, ready for JSON by `dataclasses.asdict`. Distances between sentences and neighbours are those of the
    whole corpus, whichever sentences are summarised.
    """

    n_sentences: int
    cosine_min: float
    cosine_p1: float
    """The cosine that one sentence in a hundred falls below (interpolated)."""
    cosine_mean: float
    max_abs_difference: float
    """Largest |v - r| over all entries, in the vectors' own units."""
    norm_ratio_min: float
    """Smallest |v_i| / |r_i|."""
    norm_ratio_max: float
    relative_error_mean: float | None
    """Mean of |v_i - r_i| / d, d being the root mean square distance between two different rows of the reference.

    Where all vectors point one way, any two have a high cosine; this still says how much of the room between
    sentences the error takes. d^2 = 2 / (n - 1) * sum |r_i - mean(r)|^2. None where d is no more than fp32 rounding:
    one sentence, or a corpus whose sentences are all the same.
    """
    relative_error_max: float | None
    top1_agreement: float | None
    """Share of the sentences whose nearest other sentence, by cosine, is the reference's; ties: `agreement`.

    None for a corpus of one sentence, which has no neighbours; so are the others.
    """
    top10_agreement: float | None
    """Share of the min(10, n - 1) nearest neighbours that are among the reference's, over the sentences."""
    mixed_top1_agreement: float | None
    """As `top1_agreement`, the query embedded by the engine and the other sentences by the reference."""
    mixed_top10_agreement: float | None


@dataclass(frozen=True, kw_only=True)
class WorstRow:
    """One sentence that the engine embeds worst."""

    index: int
    cosine: float
    max_abs_difference: float


@dataclass(frozen=True, kw_only=True)
class InvarianceFigures:
    """The same sentences embedded in two ways, by one engine."""

    cosine_min: float
    max_abs_difference: float


@dataclass(frozen=True, kw_only=True, eq=False)
class RowFigures:
    """What is found of each sentence of a corpus, to be summarised over all of them or some."""

    cosine: Doubles
    """float64 `(n,)`, as the next three."""
    max_abs_difference: Doubles
    norm_ratio: Doubles
    relative_error: Doubles | None
    agreement: Doubles | None
    """float64 `(4, n)`: see `neighbours.agreement`."""

    @classmethod
    def of(cls, vectors: Vectors, reference: Vectors) -> RowFigures:
        """Float32 `(n, dim)` `vectors` against `reference`, row i of both being the same sentence.

        Computed in float64. Beside two float64 copies of the input, memory stays under a few hundred MB.

        Raises:
            ParityError: the shapes differ or are empty, or a row is all zeros or holds NaN or infinity.
        """
        rows = _Differences.of(vectors, reference)
        distance = _rms_distance(reference)
        return cls(
            cosine=rows.cosine,
            max_abs_difference=rows.max_abs,
            norm_ratio=rows.norm_ratio,
            relative_error=rows.norm / distance if distance is not None else None,
            agreement=agreement(vectors, reference) if len(reference) > 1 else None,
        )

    def summary(self, rows: Sequence[int] | NDArray[np.intp] | slice = slice(None)) -> ParityFigures:
        """The figures of the sentences `rows`, one or more; unless told otherwise, of all."""
        cosine, norm_ratio = self.cosine[rows], self.norm_ratio[rows]
        errors = None if self.relative_error is None else self.relative_error[rows]
        agreed = [None] * 4 if self.agreement is None else self.agreement[:, rows].mean(axis=1).tolist()
        return ParityFigures(
            n_sentences=len(cosine),
            cosine_min=float(cosine.min()),
            cosine_p1=float(np.percentile(cosine, 1)),
            cosine_mean=float(cosine.mean()),
            max_abs_difference=float(self.max_abs_difference[rows].max()),
            norm_ratio_min=float(norm_ratio.min()),
            norm_ratio_max=float(norm_ratio.max()),
            relative_error_mean=float(errors.mean()) if errors is not None else None,
            relative_error_max=float(errors.max()) if errors is not None else None,
            top1_agreement=agreed[0],
            top10_agreement=agreed[1],
            mixed_top1_agreement=agreed[2],
            mixed_top10_agreement=agreed[3],
        )

    def worst(self, k: int = 5) -> list[WorstRow]:
        """The `k` rows of lowest cosine, worst first; of equal ones the lower index."""
        return _worst(self.cosine, self.max_abs_difference, k)


def compare(vectors: Vectors, reference: Vectors) -> ParityFigures:
    """All figures of float32 `(n, dim)` `vectors` against `reference`. Raises as `RowFigures.of`."""
    return RowFigures.of(vectors, reference).summary()


def worst_rows(vectors: Vectors, reference: Vectors, k: int = 5) -> list[WorstRow]:
    """`RowFigures.worst` without the work that it does not need. Raises as `RowFigures.of`."""
    rows = _Differences.of(vectors, reference)
    return _worst(rows.cosine, rows.max_abs, k)


def batch_invariance(alone: Vectors, together: Vectors) -> InvarianceFigures:
    """How much batch-mates change a vector: float32 `(n, dim)` both, one engine. Raises as `RowFigures.of`."""
    rows = _Differences.of(together, alone)
    return InvarianceFigures(cosine_min=float(rows.cosine.min()), max_abs_difference=float(rows.max_abs.max()))


def pair_cosines(first: Vectors, second: Vectors) -> Doubles:
    """float64 `(n,)`: cosine of each row to its like, float32 `(n, dim)` both. Raises as `RowFigures.of`."""
    return _Differences.of(first, second).cosine


def check_rows(vectors: Vectors, whose: str) -> None:
    """ParityError where a row has no direction: it is all zeros, or holds NaN or infinity."""
    for flaw, bad in (
        ("holds NaN or infinity", ~np.isfinite(vectors).all(axis=1)),
        ("is all zeros", ~vectors.any(axis=1)),
    ):
        if bad.any():
            such = f"one of {bad.sum()} such rows in {len(vectors)}"
            raise ParityError(f"{whose}: row {bad.argmax()} {flaw}, {such}: it cannot be compared")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Differences:
    """What can be said of each row by itself: float64 `(n,)` all."""

    cosine: Doubles
    max_abs: Doubles
    norm: Doubles
    """|v_i - r_i|"""
    norm_ratio: Doubles

    @classmethod
    def of(cls, vectors: Vectors, reference: Vectors) -> _Differences:
        if vectors.shape != reference.shape or vectors.ndim != 2 or vectors.size == 0:
            raise ParityError(
                f"expected vectors and reference of one shape (n, dim), neither 0: "
                f"got {vectors.shape} and {reference.shape}"
            )
        check_rows(vectors, "vectors")
        check_rows(reference, "reference")
        cosine, max_abs, norm, norm_ratio = np.empty((4, len(vectors)))
        for rows in blocks(len(vectors), vectors.shape[1]):
            v, r = vectors[rows].astype(np.float64), reference[rows].astype(np.float64)
            v_norm, r_norm = np.linalg.norm(v, axis=1), np.linalg.norm(r, axis=1)
            cosine[rows] = np.clip(np.einsum("ij,ij->i", v, r) / (v_norm * r_norm), -1, 1)
            norm_ratio[rows] = v_norm / r_norm
            v -= r
            max_abs[rows] = np.abs(v).max(axis=1)
            norm[rows] = np.linalg.norm(v, axis=1)
        return cls(cosine=cosine, max_abs=max_abs, norm=norm, norm_ratio=norm_ratio)


def _worst(cosine: Doubles, max_abs: Doubles, k: int) -> list[WorstRow]:
    return [
        WorstRow(index=int(i), cosine=float(cosine[i]), max_abs_difference=float(max_abs[i]))
        for i in np.argsort(cosine, kind="stable")[:k]
    ]


def _rms_distance(reference: Vectors) -> float | None:
    """Root mean square of |r_i - r_j| over i != j; None where it is no more than fp32 rounding."""
    n, dim = reference.shape
    centre = reference.mean(axis=0, dtype=np.float64)
    around = sum(float(np.square(reference[rows] - centre).sum()) for rows in blocks(n, dim))
    distance = float(np.sqrt(2 * around / max(1, n - 1)))
    return distance if distance > np.finfo(np.float32).eps * np.linalg.norm(centre) else None
