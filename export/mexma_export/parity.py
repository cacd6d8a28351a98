"""How far an engine's vectors are from a reference's: figures alone. What is good enough: thresholds.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mexma_runtime.errors import ParityError
from mexma_runtime.types import Vectors

N_NEIGHBOURS = 10
TIE_DISTANCE = 5e-6
"""Neighbours at reference distances this close (between unit vectors) are equally near.

Two fp32 implementations of one model move these distances by about 2e-7.
"""
_BLOCK_BYTES = 64 << 20

_Doubles = NDArray[np.float64]
_Rows = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class ParityFigures:
    """`vectors` against `reference` over one corpus; plain numbers, ready for JSON by `dataclasses.asdict`."""

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
    """Share of the sentences whose nearest other sentence, by cosine, is the reference's.

    A neighbour that the reference holds as near as its own choice (`TIE_DISTANCE`; duplicates are common) agrees. Ties
    that only the engine sees are broken arbitrarily. None for one sentence, which has no neighbours; so are the others.
    """
    top10_agreement: float | None
    """Share of the min(10, n - 1) nearest neighbours that are among the reference's, over all sentences."""
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
    """The same sentences embedded alone and among others."""

    cosine_min: float
    max_abs_difference: float


def compare(vectors: Vectors, reference: Vectors) -> ParityFigures:
    """All figures of float32 `(n, dim)` `vectors` against `reference`, row i of both being the same sentence.

    Computed in float64. Beside two float64 copies of the input, memory stays under a few hundred MB.

    Raises:
        ParityError: the shapes differ or are empty, or a row is all zeros or holds NaN or infinity.
    """
    rows = _Differences.of(vectors, reference)
    n = len(reference)
    distance = _rms_distance(reference)
    errors = rows.norm / distance if distance is not None else None
    agreement = _agreement(_unit(vectors), _unit(reference)) if n > 1 else [None] * 4
    return ParityFigures(
        n_sentences=n,
        cosine_min=float(rows.cosine.min()),
        cosine_p1=float(np.percentile(rows.cosine, 1)),
        cosine_mean=float(rows.cosine.mean()),
        max_abs_difference=float(rows.max_abs.max()),
        norm_ratio_min=float(rows.norm_ratio.min()),
        norm_ratio_max=float(rows.norm_ratio.max()),
        relative_error_mean=float(errors.mean()) if errors is not None else None,
        relative_error_max=float(errors.max()) if errors is not None else None,
        top1_agreement=agreement[0],
        top10_agreement=agreement[1],
        mixed_top1_agreement=agreement[2],
        mixed_top10_agreement=agreement[3],
    )


def worst_rows(vectors: Vectors, reference: Vectors, k: int = 5) -> list[WorstRow]:
    """The `k` rows of lowest cosine, worst first; of equal ones the lower index. Raises as `compare`."""
    rows = _Differences.of(vectors, reference)
    order = np.argsort(rows.cosine, kind="stable")[:k]
    return [
        WorstRow(index=int(i), cosine=float(rows.cosine[i]), max_abs_difference=float(rows.max_abs[i])) for i in order
    ]


def batch_invariance(alone: Vectors, together: Vectors) -> InvarianceFigures:
    """How much batch-mates change a vector: float32 `(n, dim)` both, one engine. Raises as `compare`."""
    rows = _Differences.of(together, alone)
    return InvarianceFigures(cosine_min=float(rows.cosine.min()), max_abs_difference=float(rows.max_abs.max()))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Differences:
    """What can be said of each row by itself: float64 `(n,)` all."""

    cosine: _Doubles
    max_abs: _Doubles
    norm: _Doubles
    """|v_i - r_i|"""
    norm_ratio: _Doubles

    @classmethod
    def of(cls, vectors: Vectors, reference: Vectors) -> _Differences:
        if vectors.shape != reference.shape or vectors.ndim != 2 or vectors.size == 0:
            raise ParityError(
                f"expected vectors and reference of one shape (n, dim), neither 0: "
                f"got {vectors.shape} and {reference.shape}"
            )
        _check_rows(vectors, "vectors")
        _check_rows(reference, "reference")
        cosine, max_abs, norm, norm_ratio = np.empty((4, len(vectors)))
        for rows in _blocks(len(vectors), vectors.shape[1]):
            v, r = vectors[rows].astype(np.float64), reference[rows].astype(np.float64)
            v_norm, r_norm = np.linalg.norm(v, axis=1), np.linalg.norm(r, axis=1)
            cosine[rows] = np.clip(np.einsum("ij,ij->i", v, r) / (v_norm * r_norm), -1, 1)
            norm_ratio[rows] = v_norm / r_norm
            v -= r
            max_abs[rows] = np.abs(v).max(axis=1)
            norm[rows] = np.linalg.norm(v, axis=1)
        return cls(cosine=cosine, max_abs=max_abs, norm=norm, norm_ratio=norm_ratio)


def _check_rows(vectors: Vectors, whose: str) -> None:
    for flaw, bad in (
        ("holds NaN or infinity", ~np.isfinite(vectors).all(axis=1)),
        ("is all zeros", ~vectors.any(axis=1)),
    ):
        if bad.any():
            such = f"one of {bad.sum()} such rows in {len(vectors)}"
            raise ParityError(f"{whose}: row {bad.argmax()} {flaw}, {such}: it cannot be compared")


def _blocks(n: int, width: int) -> Iterator[slice]:
    """Slices of rows such that a float64 block `(rows, width)` stays within `_BLOCK_BYTES`."""
    step = max(1, _BLOCK_BYTES // (8 * width))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _rms_distance(reference: Vectors) -> float | None:
    """Root mean square of |r_i - r_j| over i != j; None where it is no more than fp32 rounding."""
    n, dim = reference.shape
    centre = reference.mean(axis=0, dtype=np.float64)
    around = sum(float(np.square(reference[rows] - centre).sum()) for rows in _blocks(n, dim))
    distance = float(np.sqrt(2 * around / max(1, n - 1)))
    return distance if distance > np.finfo(np.float32).eps * np.linalg.norm(centre) else None


def _unit(vectors: Vectors) -> _Doubles:
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return unit


def _agreement(vectors: _Doubles, reference: _Doubles) -> list[float]:
    """[top-1, top-k, mixed top-1, mixed top-k] over unit rows."""
    n = len(reference)
    k = min(N_NEIGHBOURS, n - 1)
    agreed = np.zeros(4)
    for rows in _blocks(n, n):
        true = _similarities(reference, reference, rows)
        nearest = np.take_along_axis(true, _nearest(true, k), axis=1)
        for engine, index in enumerate((vectors, reference)):
            chosen = np.take_along_axis(true, _nearest(_similarities(vectors, index, rows), k), axis=1)
            agreed[2 * engine] += _count_agreeing(chosen[:, :1], nearest[:, :1])
            agreed[2 * engine + 1] += _count_agreeing(chosen, nearest)
    return [float(share) for share in agreed / (n * np.array([1, k, 1, k]))]


def _similarities(queries: _Doubles, index: _Doubles, rows: slice) -> _Doubles:
    """Cosines of `queries[rows]` to every row of `index`, a query's own row being -inf."""
    similarities: _Doubles = queries[rows] @ index.T
    similarities[np.arange(rows.stop - rows.start), np.arange(rows.start, rows.stop)] = -np.inf
    return similarities


def _nearest(similarities: _Doubles, k: int) -> _Rows:
    """Columns of the `k` largest a row, largest first."""
    nearest = np.argpartition(similarities, -k, axis=1)[:, -k:]
    order = np.argsort(-np.take_along_axis(similarities, nearest, axis=1), axis=1)
    return np.take_along_axis(nearest, order, axis=1)


def _count_agreeing(chosen: _Doubles, nearest: _Doubles) -> int:
    """Neighbours that agree, given the *reference's* similarities of the engine's choice and of its own.

    Those strictly nearer than the last of the reference's own agree by themselves; those tied with that last one agree
    as long as the strictly nearer ones leave places.
    """
    chosen, nearest = (np.sqrt(np.maximum(0, 2 - 2 * similarity)) for similarity in (chosen, nearest))
    last = nearest[:, -1:]
    places = (nearest >= last - TIE_DISTANCE).sum(axis=1)
    nearer = (chosen < last - TIE_DISTANCE).sum(axis=1)
    tied = (np.abs(chosen - last) <= TIE_DISTANCE).sum(axis=1)
    return int((nearer + np.minimum(tied, places)).sum())
