"""xsim: how many sentences of a bitext find a wrong translation by the ratio margin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mexma_export.parity.figures import check_rows
from mexma_export.parity.neighbours import Doubles
from mexma_runtime.errors import MissingDependencyError, ParityError
from mexma_runtime.types import Vectors

K = 4
"""Neighbours that the margin looks at, as in LASER."""


def xsim_errors(source: Vectors, target: Vectors, target_texts: Sequence[str]) -> int:
    """Rows of `source` that choose a wrong row of `target`; float32 `(n, dim)` both, row i of both one sentence.

    As LASER counts (facebookresearch/LASER, source/xsim.py: margin="ratio", k=4): source row x chooses, among its k
    nearest target rows y by cosine, the one of the largest cos(x, y) / ((a(x) + a(y)) / 2), where a(x) is the mean
    cosine of x to its k nearest target rows and a(y) that of y to its k nearest source rows (ratio margin of Artetxe
    and Schwenk, arXiv:1811.01136). Of fewer than k rows all are neighbours. The search is exact.

    Target sentences that occur twice stay, and take places among the k neighbours; choosing any row whose text is the
    right one is right, which is LASER's textual error, the one that its evaluation reports.

    Raises:
        ParityError: the shapes differ, or a row is all zeros or holds NaN or infinity.
        MissingDependencyError: faiss is not installed.
    """
    n = len(target_texts)
    if source.shape != target.shape or len(source) != n or source.size == 0:
        raise ParityError(f"expected {n} source and target vectors of one size, got {source.shape} and {target.shape}")
    check_rows(source, "source")
    check_rows(target, "target")
    x, y = _unit(source), _unit(target)
    k = min(K, n)
    forward, candidates = _search(x, y, k)
    backward, _ = _search(y, x, k)
    mean = (forward.mean(axis=1)[:, None] + backward.mean(axis=1)[candidates]) / 2
    best = np.argmax(forward / mean, axis=1)
    chosen = candidates[np.arange(n), best]
    return sum(target_texts[row] != target_texts[i] for i, row in enumerate(chosen.tolist()))


def require_faiss() -> Any:
    """The module; MissingDependencyError where it is not installed."""
    try:
        import faiss
    except ModuleNotFoundError:
        raise MissingDependencyError("faiss-cpu", needed_for="the xsim error rate", extra="bench") from None
    return faiss


def _unit(vectors: Vectors) -> Vectors:
    unit = np.array(vectors, dtype=np.float32, order="C")
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return unit


def _search(queries: Vectors, index: Vectors, k: int) -> tuple[Doubles, Any]:
    """Cosines to the `k` nearest rows of `index` and their numbers, `(n, k)` both, nearest first."""
    flat = require_faiss().IndexFlatIP(index.shape[1])
    flat.add(index)
    cosines, rows = flat.search(queries, k)
    return cosines.astype(np.float64), rows
