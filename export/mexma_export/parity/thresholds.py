"""What each precision owes its reference: one table, read by the export gate, by `mexma parity` and by the tests."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from mexma_export.parity.figures import InvarianceFigures, ParityFigures
from mexma_runtime.types import QUANTIZED, Precision


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A bound on one figure of `ParityFigures`."""

    metric: str
    relation: Literal[">=", "<="]
    bound: float

    def holds(self, value: float) -> bool:
        """Whether `value` is within the bound; NaN never is."""
        return value >= self.bound if self.relation == ">=" else value <= self.bound


THRESHOLDS = MappingProxyType(
    {
        Precision.FP32: (
            Threshold(metric="cosine_min", relation=">=", bound=0.999999),
            Threshold(metric="max_abs_difference", relation="<=", bound=1e-4),
            Threshold(metric="top10_agreement", relation=">=", bound=1.0),
        ),
        Precision.FP16: (
            Threshold(metric="cosine_min", relation=">=", bound=0.9998),
            Threshold(metric="relative_error_mean", relation="<=", bound=0.02),
            Threshold(metric="top10_agreement", relation=">=", bound=0.98),
        ),
        **dict.fromkeys(
            QUANTIZED,
            (
                Threshold(metric="cosine_min", relation=">=", bound=0.97),
                Threshold(metric="relative_error_mean", relation="<=", bound=0.1),
                Threshold(metric="top10_agreement", relation=">=", bound=0.85),
            ),
        ),
    }
)
"""`max_abs_difference` is in the vectors' own units: it suits entries of order 1, as LayerNorm and L2 norms give.

fp16 has no bound on top-1: among the gate's few dozen sentences one near tie would decide it. The full-size stand-in,
whose sentences lie close together, had a relative error of 0.004 and one such flip in 63.
"""


BATCH_INVARIANCE = MappingProxyType(
    {
        precision: Threshold(
            metric="cosine_min", relation=">=", bound=0.9999 if precision is Precision.FP16 else 0.999999
        )
        for precision in Precision
    }
)
"""What each precision owes a sentence, whatever its batch-mates. A GPU sums products of other shapes in another order,
which fp16 shows in its fourth digit."""
INVARIANCE_AROUND_FP16 = Threshold(metric="cosine_min", relation=">=", bound=0.999)
"""The same of 8 bits between operators in fp16: where its last digit differs, a number may be rounded the other way."""


@dataclass(frozen=True, kw_only=True)
class Shortfall:
    """One figure that misses its threshold; `str()` is the message."""

    metric: str
    expected: Threshold
    got: float | None
    """None: the corpus was too small to measure it."""

    def __str__(self) -> str:
        expected = f"{self.metric}: expected {self.expected.relation} {self.expected.bound:.9g}"
        if self.got is None:
            return f"{expected}, not measured: it takes two sentences or more"
        return f"{expected}, got {self.got:.9g}"


def check(figures: ParityFigures, precision: Precision) -> list[Shortfall]:
    """Every threshold of `precision` that `figures` miss; empty when all are met."""
    shortfalls = []
    for threshold in THRESHOLDS[precision]:
        got: float | None = getattr(figures, threshold.metric)
        if got is None or not threshold.holds(got):
            shortfalls.append(Shortfall(metric=threshold.metric, expected=threshold, got=got))
    return shortfalls


def check_invariance(
    figures: InvarianceFigures, precision: Precision, *, is_around_fp16: bool = False
) -> list[Shortfall]:
    """A shortfall where batch-mates change a vector by more than rounding; empty otherwise.

    `is_around_fp16`: whether what is not quantized is fp16, in an engine where something is.
    """
    threshold = INVARIANCE_AROUND_FP16 if is_around_fp16 else BATCH_INVARIANCE[precision]
    if threshold.holds(figures.cosine_min):
        return []
    metric = f"batch invariance, {threshold.metric}"
    return [Shortfall(metric=metric, expected=threshold, got=figures.cosine_min)]
