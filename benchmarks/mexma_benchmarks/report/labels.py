"""Names beside the points of a scatter, as far as there is room: none lies on another, on a point or on a line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise, product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mexma_benchmarks.report.axes import Point, folded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

_DISTANCES = (10, 16, 22)
"""From a point to its name, in pixels at 100 dots an inch: further off it could be another's."""
_ANGLES = np.radians([0, 90, 270, 180, 45, 135, 225, 315, 67.5, 112.5, 247.5, 292.5])
_GAP = 4
_MARKER = 16


def place_labels(
    figure: Figure, ax: Axes, points: Mapping[str, Point], names: Iterable[str], line: Sequence[Point]
) -> None:
    """Write `names` beside their points of all `points`, the first ones first, off `line`; none where there is no room.

    The layout is frozen: what is written inside must not move the axes.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    taken = [_box(ax.transData.transform(point), (_MARKER, _MARKER)) for point in points.values()]
    for a, b in pairwise(ax.transData.transform(list(line))):
        taken += [_box(at, (1, 1)) for at in np.linspace(a, b, 2 + int(np.hypot(*(b - a)) / 4))]
    for name in names:
        label = ax.annotate(folded(name), points[name], fontsize=9, fontweight="bold", ha="center", va="center")
        extent = label.get_window_extent()
        size = (extent.width + 2 * _GAP, extent.height + 2 * _GAP)
        for distance, angle in product(_DISTANCES, _ANGLES):
            reach = np.array([np.cos(angle) * (distance + size[0] / 2), np.sin(angle) * (distance + size[1] / 2)])
            centre = ax.transData.transform(points[name]) + reach
            box = _box(centre, size)
            if _is_inside(box, ax.bbox) and not box.count_overlaps(taken):
                label.set_position(tuple(ax.transData.inverted().transform(centre)))
                taken.append(box)
                break
        else:
            label.remove()


def _box(centre: NDArray[np.float64], size: tuple[float, float]) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_bounds(centre[0] - size[0] / 2, centre[1] - size[1] / 2, *size)


def _is_inside(box: Bbox, frame: Bbox) -> bool:
    return bool(box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1)
