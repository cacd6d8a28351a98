"""How far one model's vectors are from the reference's, as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mexma_benchmarks.report.formats import NOTHING, escape, optional, table
from mexma_benchmarks.result.result import Fidelity, ModelResult
from mexma_export.parity.figures import ParityFigures


def fidelity_section(model: ModelResult) -> Iterator[str]:
    """How far the vectors are from the reference's."""
    judged = [(subject.name, subject.fidelity) for subject in model.subjects if subject.fidelity]
    if not judged:
        return
    yield "### Fidelity"
    yield f"Against {escape(model.reference)}; {escape(model.fidelity_corpus)}."
    if model.is_standin:
        yield "These weights are random: the figures show that the computation is the same, and nothing about quality."
    head = ["subject", "cosine min", "p1", "mean", "max difference", "norm ratio", "error/distance mean", "max"]
    yield table(head, [[_judged_name(name, one), *_distance_cells(one.figures)] for name, one in judged])
    yield table(
        ["subject", "top-1", "top-10", "mixed top-1", "mixed top-10", "in a batch: cosine min", "max difference"],
        [[_judged_name(name, one), *_neighbour_cells(one)] for name, one in judged],
    )
    if any(one.by_length or one.by_language for _, one in judged):
        yield "The group that keeps fewest of its ten nearest, with that share and its least cosine:"
        yield table(
            ["subject", "tokens", "language"],
            [[_judged_name(name, one), _worst(one.by_length), _worst(one.by_language)] for name, one in judged],
        )
    yield (
        "Error/distance: length of the difference over the root mean square distance between two sentences. Top-1, "
        "top-10: share of the nearest, and of the ten nearest, neighbours that are the reference's. Mixed: queries by "
        "the subject, index by the reference. In a batch: the same sentences alone, among others, in another order."
    )
    for text in dict.fromkeys(one.calibration for _, one in judged if one.calibration):
        names = ", ".join(escape(name) for name, one in judged if one.calibration == text)
        yield f"Calibrated on {escape(text)}: {names}."
    for reason in dict.fromkeys(one.uncertified for _, one in judged if one.uncertified):
        names = ", ".join(escape(name) for name, one in judged if one.uncertified == reason)
        yield f"Uncertified, {names}: {escape(reason)}"


def kept_neighbours(one: Fidelity | None) -> str:
    """The share of the ten nearest, for a cell."""
    if one is None:
        return NOTHING
    return optional(one.figures.top10_agreement, ".4f") + (" (uncertified)" if one.uncertified else "")


def _judged_name(name: str, one: Fidelity) -> str:
    return escape(name) + (" (uncertified)" if one.uncertified else "")


def _distance_cells(figures: ParityFigures) -> list[str]:
    return [
        f"{figures.cosine_min:.6f}",
        f"{figures.cosine_p1:.6f}",
        f"{figures.cosine_mean:.6f}",
        f"{figures.max_abs_difference:.1e}",
        f"{figures.norm_ratio_min:.4f} to {figures.norm_ratio_max:.4f}",
        optional(figures.relative_error_mean, ".1e"),
        optional(figures.relative_error_max, ".1e"),
    ]


def _neighbour_cells(one: Fidelity) -> list[str]:
    figures, batch_mates = one.figures, one.invariance
    return [
        optional(figures.top1_agreement, ".4f"),
        optional(figures.top10_agreement, ".4f"),
        optional(figures.mixed_top1_agreement, ".4f"),
        optional(figures.mixed_top10_agreement, ".4f"),
        optional(batch_mates.cosine_min if batch_mates else None, ".6f"),
        optional(batch_mates.max_abs_difference if batch_mates else None, ".1e"),
    ]


def _worst(groups: Mapping[str, ParityFigures]) -> str:
    if not groups:
        return NOTHING

    def badness(item: tuple[str, ParityFigures]) -> tuple[float, float]:
        kept = item[1].top10_agreement
        return 1.0 if kept is None else kept, item[1].cosine_min

    name, figures = min(groups.items(), key=badness)
    kept = optional(figures.top10_agreement, ".4f")
    return f"{escape(name)}: {kept}, {figures.cosine_min:.6f} ({figures.n_sentences} sentences)"
