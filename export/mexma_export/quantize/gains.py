"""What the search for quantized engines gained, as `mexma export` prints it: the error of products after each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich.box import SIMPLE
from rich.table import Table

from mexma_export.graph.linear_groups import PARTS
from mexma_runtime.bundle.manifest import EngineEntry, ProductMode, QuantizedProduct

STEPS: tuple[tuple[str, Callable[[QuantizedProduct], float]], ...] = (
    ("plain", lambda product: product.error_plain),
    ("smoothing, ranges", lambda product: product.error_migrated),
    ("rounding, bias", lambda product: product.error),
)
SMALLEST = 1e-12


def gains_table(engines: Sequence[EngineEntry]) -> Table:
    """A row for each part of each engine's layers: geometric means over the layers, and the worst product."""
    title = "Error of quantized products on calibration text, as a share of their output's variance"
    table = Table("engine", "products", "mode", title=title, box=SIMPLE)
    for name in (*(name for name, _ in STEPS), "worst, layer"):
        table.add_column(name, justify="right")
    for engine in engines:
        products = engine.quantization.products if engine.quantization else []
        for part in PARTS:
            found = [p for p in products if p.name.split(".", 2)[2] == part]
            quantized = [p for p in found if p.mode is not ProductMode.FLOAT]
            modes = ", ".join(dict.fromkeys(p.mode.value for p in found))
            if not quantized:
                table.add_row(engine.name, part, modes, *["-"] * (len(STEPS) + 1))
                continue
            means = [_geometric_mean([error(p) for p in quantized]) for _, error in STEPS]
            worst = max(quantized, key=lambda p: p.error)
            table.add_row(
                engine.name, part, modes, *(f"{m:.1e}" for m in means), f"{worst.error:.1e} {worst.name.split('.')[1]}"
            )
        table.add_section()
    return table


def _geometric_mean(errors: Sequence[float]) -> float:
    return math.exp(sum(math.log(max(error, SMALLEST)) for error in errors) / len(errors))
