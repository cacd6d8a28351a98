"""`python -m mexma_benchmarks.studies.layer_errors BUNDLE --out FILE.png`: int8's error in each layer, by product.

A panel for each product of a layer, a colour for each engine, a line for each step of the search; from bundle.json.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer

from mexma_benchmarks.report.axes import RC, Point, add_legend, new_figure, set_log
from mexma_benchmarks.report.charts import Chart
from mexma_benchmarks.report.palette import INK, style
from mexma_export.quantize.gains import STEPS
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry, Manifest, ProductMode, QuantizedProduct
from mexma_runtime.bundle.whole_files import write_whole
from mexma_runtime.errors import MexmaError, MissingDependencyError, UsageError
from mexma_runtime.terminal import note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

TITLE = "Error of int8 products by layer"
N_COLUMNS = 2
APART = 0.1
"""Layers between the points of two engines, which else would often lie on each other."""
FLOAT_MARKER = "X"
ROW_HEIGHT = 0.07
"""Of an engine's marks of products in float, as a share of a panel."""
LOOKS: tuple[tuple[Literal[":", "--", "-"], float, float], ...] = ((":", 1.4, 3), ("--", 1.4, 3), ("-", 2.2, 5))
"""Dashes, width and size of the markers, in points, of each of STEPS."""


def quantized_engines(manifest: Manifest, names: Sequence[str]) -> list[EngineEntry]:
    """The int8 engines of those names, all of them where none is named; UsageError lists what there is."""
    found = {e.name: e for e in manifest.engines if e.quantization and e.quantization.products}
    if unknown := [name for name in names if name not in found] or ([] if found else ["any"]):
        raise UsageError(f"no int8 engine {', '.join(unknown)}: the bundle has {', '.join(found) or 'none'}")
    return [found[name] for name in dict.fromkeys(names)] or list(found.values())


def draw_layer_errors(engines: Sequence[EngineEntry], model: str) -> Chart:
    """The errors of `engines`, a panel for each part of a layer; `model` is named in the title.

    Raises:
        UsageError: a product is in no layer.
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.ticker import FuncFormatter
    except ImportError:
        raise MissingDependencyError("matplotlib", needed_for="the figure", extra="bench") from None
    by_part = [_by_part(engine) for engine in engines]
    parts = list(dict.fromkeys(part for found in by_part for part in found))
    with matplotlib.rc_context(RC):
        figure = new_figure(TITLE, model)
        figure.supylabel("mean square error over the output's variance", fontsize=RC["font.size"])
        n_rows = math.ceil(len(parts) / N_COLUMNS)
        panels = figure.subplots(n_rows, N_COLUMNS, sharex=True, sharey=True, squeeze=False)
        for ax in panels.flat[len(parts) :]:
            ax.remove()
        for ax, part in zip(panels.flat, parts, strict=False):
            ax.set_title(part)
            for i, found in enumerate(by_part):
                _draw(ax, found.get(part, {}), i, shift=APART * (i - (len(engines) - 1) / 2))
        first = panels[0, 0]
        has_float = any(p.mode is ProductMode.FLOAT for found in by_part for of in found.values() for p in of.values())
        _set_log(first, n_rows=len(engines) if has_float else 0)
        first.margins(x=0.03)
        first.yaxis.set_major_formatter(FuncFormatter(lambda share, _: percent(share)))
        n_layers = 1 + max((layer for found in by_part for of in found.values() for layer in of), default=0)
        first.set_xticks(range(0, n_layers, 1 if n_layers <= 8 else 2 * math.ceil(n_layers / 16)))
        for ax in panels.flat[max(0, len(parts) - N_COLUMNS) : len(parts)]:
            ax.set_xlabel("layer")
        add_legend(figure, _keys(engines, has_float=has_float))
    return Chart(name="layer-errors", title=f"{TITLE}, {model}", figure=figure)


def percent(share: float) -> str:
    """All digits, never as a power of ten."""
    return f"{100 * share:.12f}".rstrip("0").rstrip(".") + "%"


def points(products: dict[int, QuantizedProduct], error: Callable[[QuantizedProduct], float]) -> list[Point]:
    """(layer, error) of one step, by layer; NaN, a gap in the line, where there is no error to draw on a log scale."""
    return [(layer, error(product) or math.nan) for layer, product in sorted(products.items())]


def _by_part(engine: EngineEntry) -> dict[str, dict[int, QuantizedProduct]]:
    """`ffn.down` -> layer -> product."""
    found: dict[str, dict[int, QuantizedProduct]] = {}
    for product in engine.quantization.products if engine.quantization else []:
        name = re.fullmatch(r"layer\.(\d+)\.(.+)", product.name)
        if name is None:
            raise UsageError(f"{engine.name}: product {product.name!r}: expected layer.NUMBER.PART")
        found.setdefault(name[2], {})[int(name[1])] = product
    return found


def _draw(ax: Axes, products: dict[int, QuantizedProduct], i: int, *, shift: float) -> None:
    """The lines of engine `i`, `shift` layers aside; what it left in float is marked at the bottom, in row `i`."""
    colour = style("engine", i).colour
    for (_, error), (dashes, width, size) in zip(STEPS, LOOKS, strict=True):
        drawn = [(layer + shift, share) for layer, share in points(products, error)]
        ax.plot(*zip(*drawn, strict=True), color=colour, linestyle=dashes, linewidth=width, marker="o", markersize=size)
    floats = [layer + shift for layer, product in products.items() if product.mode is ProductMode.FLOAT]
    heights = [ROW_HEIGHT * (i + 0.6)] * len(floats)
    ax.plot(floats, heights, FLOAT_MARKER, color=colour, markersize=6, transform=ax.get_xaxis_transform())


def _set_log(ax: Axes, *, n_rows: int) -> None:
    """Two ticks a power of ten, or as all charts have them where that is few; room for `n_rows` of marks below."""
    ax.set_yscale("log")
    low, high = np.log10(ax.get_ylim())
    ax.set_ylim(bottom=10 ** (low - ROW_HEIGHT * n_rows * (high - low)))
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 3)]
    set_log(ax, "y", ticks if high - low > 1.5 else None, gap=0.11)  # a panel is half as high


def _keys(engines: Sequence[EngineEntry], *, has_float: bool) -> list[Line2D]:
    """What the legend explains: colours, then lines, then the mark of products in float."""
    from matplotlib.lines import Line2D

    keys = [Line2D([], [], color=style("engine", i).colour, linewidth=6, label=e.name) for i, e in enumerate(engines)]
    for (step, _), (dashes, width, size) in zip(STEPS, LOOKS, strict=True):
        keys.append(
            Line2D([], [], color=INK, linestyle=dashes, linewidth=width, marker="o", markersize=size, label=step)
        )
    if has_float:
        keys.append(Line2D([], [], color=INK, linestyle="none", marker=FLOAT_MARKER, label="left in float"))
    return keys


def main(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle with int8 engines.")],
    out: Annotated[Path, typer.Option(help="The picture to write, a PNG.")],
    engine: Annotated[
        list[str] | None, typer.Option(help="May be given several times. Default: all int8 engines.")
    ] = None,
) -> None:
    """Draw the error of each int8 product by layer, before and after each step of the search."""
    try:
        manifest = Bundle.open(bundle).manifest
        chart = draw_layer_errors(quantized_engines(manifest, engine or []), manifest.model.id)
    except MexmaError as error:
        note(f"error: {error}")
        raise typer.Exit(error.exit_code) from None
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, chart.png())
    note(f"wrote {out}")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
