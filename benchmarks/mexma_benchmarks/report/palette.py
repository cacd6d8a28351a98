"""How a subject looks, the same in every chart: ours strong, baselines grey, peers light."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mexma_benchmarks.result.measured import subject_names
from mexma_benchmarks.result.result import ModelResult, Role

Dashes = str | tuple[int, tuple[float, ...]]
"""A line's pattern, as matplotlib takes it."""
INK = "#1f2328"
"""Of text, axes and the first baseline; the page replaces it by its own, so that charts are read on dark too."""

# Okabe and Ito's colours, which the colour-blind tell apart: the strong ones for us, tints for peers.
_COLOURS: dict[Role, tuple[str, ...]] = {
    "engine": ("#0072b2", "#d55e00", "#009e73", "#b5478f"),
    "baseline": (INK, "#6e7781", "#99a1aa"),
    "peer": ("#56b4e9", "#e69f00", "#66c2a5", "#e78ac3", "#a6a233"),
}
# As many markers as have no divisor in common with the colours: no pair of both comes again soon.
_MARKERS: dict[Role, str] = {"engine": "osD^P", "baseline": "XPd*", "peer": "osD^vp<>h8*"}
_DASHES: dict[Role, tuple[Dashes, ...]] = {
    "engine": ("-", (0, (6, 1.2)), (0, (6, 1.2, 1.2, 1.2))),
    "baseline": ("--",),
    "peer": ((0, (3, 1)),),
}


@dataclass(frozen=True, kw_only=True)
class Style:
    """Colour, marker and line of one subject."""

    role: Role
    colour: str
    marker: str
    dashes: Dashes

    @property
    def width(self) -> float:
        """Of its line, in points."""
        return {"engine": 2.2, "baseline": 1.8, "peer": 1.3}[self.role]

    @property
    def face(self) -> str:
        """What fills its marker: those of peers are hollow."""
        return "none" if self.role == "peer" else self.colour


def styles(models: Iterable[ModelResult]) -> dict[str, Style]:
    """Subject -> its style; a name is the same subject in every model."""
    roles: dict[str, Role] = {}
    for model in models:
        listed = {subject.name: subject.role for subject in model.subjects}
        for name in subject_names(model):  # the baseline comes first, and has the darkest colour
            roles.setdefault(name, listed.get(name, "peer"))
    found: dict[str, Style] = {}
    counts: dict[Role, int] = {"engine": 0, "baseline": 0, "peer": 0}
    for name, role in roles.items():
        found[name] = style(role, counts[role])
        counts[role] += 1
    return found


def style(role: Role, i: int) -> Style:
    """The look of subject `i` of its role; a colour that comes again comes with another marker and other dashes."""
    colours, markers, dashes = _COLOURS[role], _MARKERS[role], _DASHES[role]
    turn, colour = divmod(i, len(colours))
    marker = markers[i % len(markers)]
    return Style(role=role, colour=colours[colour], marker=marker, dashes=dashes[turn % len(dashes)])
