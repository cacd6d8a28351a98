"""How a subject looks, the same in every chart: ours strong, baselines grey, peers light."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mexma_benchmarks.measured import subject_names
from mexma_benchmarks.result import ModelResult, Role

INK = "#1f2328"
"""Of text, axes and the first baseline; the page replaces it by its own, so that charts are read on dark too."""

# Okabe and Ito's colours, which the colour-blind tell apart: the strong ones for us, tints for peers.
_COLOURS: dict[Role, tuple[str, ...]] = {
    "engine": ("#0072b2", "#d55e00", "#009e73", "#b5478f"),
    "baseline": (INK, "#6e7781", "#99a1aa"),
    "peer": ("#56b4e9", "#e69f00", "#66c2a5", "#e78ac3", "#a6a233"),
}
_MARKERS: dict[Role, str] = {"engine": "osD^P", "baseline": "XPd*", "peer": "osD^vp<>h8"}
_DASHES: dict[Role, str | tuple[int, tuple[int, ...]]] = {"engine": "-", "baseline": "--", "peer": (0, (3, 1))}


@dataclass(frozen=True, kw_only=True)
class Style:
    """Colour, marker and line of one subject."""

    role: Role
    colour: str
    marker: str
    dashes: str | tuple[int, tuple[int, ...]]

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
        i = counts[role]
        counts[role] += 1
        colours, markers = _COLOURS[role], _MARKERS[role]
        # A colour that comes again comes with another marker.
        marker = markers[(i + i // len(colours)) % len(markers)]
        found[name] = Style(role=role, colour=colours[i % len(colours)], marker=marker, dashes=_DASHES[role])
    return found
