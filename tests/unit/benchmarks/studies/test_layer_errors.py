from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.text import Text
from typer import Typer
from typer.testing import CliRunner

from mexma_benchmarks.report.charts import Chart
from mexma_benchmarks.studies.layer_errors import FLOAT_MARKER, draw_layer_errors, main, percent, quantized_engines
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import MANIFEST_NAME, EngineEntry, ProductMode, Quantization, QuantizedProduct
from mexma_runtime.errors import UsageError
from mexma_runtime.types import PADDED_DIALECTS, Dialect, Precision

PARTS = ("attention.qkv", "attention.output", "ffn.up", "ffn.down")
FAST, PRECISE = "portable.int8.fast.uint8", "portable.int8.precise.uint8"


def product(layer: int, part: str, plain: float) -> QuantizedProduct:
    return QuantizedProduct(
        name=f"layer.{layer}.{part}",
        mode=ProductMode.TOKEN if plain else ProductMode.FLOAT,
        migration=None,
        scale=None,
        zero_point=None,
        error=plain / 4,
        error_plain=plain,
        error_migrated=plain / 2,
    )


def engine(name: str, errors: dict[str, list[float]]) -> EngineEntry:
    """One whose products have those errors, by part and layer; 0: it is left in float."""
    recipe = name.split(".")[2]
    return EngineEntry(
        name=name,
        dialect=Dialect.PORTABLE,
        precision=Precision.INT8,
        recipe=recipe,
        activation="uint8",
        file="",
        weights=[],
        inputs=[],
        output="",
        requires={},
        space="",
        quantization=Quantization(
            recipe_sha256="0" * 64,
            seed=0,
            calibration="made up",
            calibration_sha256="0" * 64,
            n_texts=1,
            n_tokens=1,
            weight_bits=8,
            group_size=None,
            products=[product(i, part, error) for part, of in errors.items() for i, error in enumerate(of)],
        ),
    )


def panels(engines: list[EngineEntry]) -> dict[str, Axes]:
    return {ax.get_title(loc="left"): ax for ax in draw_layer_errors(engines, "made up").figure.axes}


def test_a_panel_a_part_and_a_line_a_step_of_each_engine() -> None:
    errors = [1e-3, 4e-3, 2e-2]

    drawn = panels([engine(FAST, dict.fromkeys(PARTS, errors)), engine(PRECISE, dict.fromkeys(PARTS, errors))])

    assert list(drawn) == list(PARTS)
    for ax in drawn.values():
        lines = [ys for line in ax.lines if (ys := np.asarray(line.get_ydata())).size]
        assert [list(ys) for ys in lines] == [[error / share for error in errors] for share in (1, 2, 4)] * 2
        assert ax.get_yscale() == "log"
        assert [round(float(x)) for x in np.asarray(ax.lines[0].get_xdata())] == [0, 1, 2]


def test_what_is_left_in_float_is_marked_and_not_drawn_as_an_error() -> None:
    ax = panels([engine(FAST, {"ffn.up": [1e-3, 0, 1e-4], "ffn.down": [1e-3, 1e-3, 1e-3]})])["ffn.up"]

    *lines, marks = ax.lines
    for line in lines:
        assert [math.isnan(y) for y in np.asarray(line.get_ydata())] == [False, True, False]
    assert (marks.get_marker(), list(np.asarray(marks.get_xdata()))) == (FLOAT_MARKER, [1])
    low = min(np.nanmin(np.asarray(line.get_ydata())) for line in lines)
    assert ax.transAxes.inverted().transform(ax.transData.transform((0, low)))[1] > np.asarray(marks.get_ydata())[0]


@pytest.mark.parametrize("n_layers", [1, 6, 24])
@pytest.mark.parametrize("spread", [0.1, 6.0])
def test_no_text_lies_on_another_or_outside_and_only_the_legend_names_engines(
    misplaced: Callable[[Chart], list[str]], n_layers: int, spread: float
) -> None:
    random = np.random.default_rng(n_layers)
    errors = {part: [0.0, *10 ** (random.random(n_layers - 1) * spread - 8)] for part in PARTS}
    errors["ffn.up"][0] = 1e-4
    names = [f"{dialect}.int8.{recipe}.uint8" for dialect in PADDED_DIALECTS for recipe in ("fast", "precise")]

    chart = draw_layer_errors([engine(name, errors) for name in names], "some/model-with-a-name")

    assert misplaced(chart) == []
    written = [text.get_text() for text in chart.figure.findobj(Text)]
    assert all(written.count(name) == 1 for name in names)
    assert written.count("left in float") == 1


@given(st.floats(1e-9, 1))
def test_a_share_is_written_out_in_percent(share: float) -> None:
    written = percent(share)

    assert written.endswith("%")
    assert "e" not in written
    assert float(written[:-1]) == pytest.approx(100 * share, abs=1e-12)


def test_engines_are_those_asked_for_or_all_of_int8(tiny_bundle: Path) -> None:
    fast, precise = (engine(name, {"ffn.up": [1e-3]}) for name in (FAST, PRECISE))
    floats = Bundle.open(tiny_bundle).manifest
    manifest = dataclasses.replace(floats, engines=[*floats.engines, fast, precise])

    assert quantized_engines(manifest, []) == [fast, precise]
    assert quantized_engines(manifest, [PRECISE]) == [precise]
    with pytest.raises(UsageError, match=f"no int8 engine portable.fp32: the bundle has {FAST}, {PRECISE}"):
        quantized_engines(manifest, ["portable.fp32", FAST])
    with pytest.raises(UsageError, match="the bundle has none"):
        quantized_engines(floats, [])


def test_a_product_of_no_layer_is_refused() -> None:
    odd = engine(FAST, {})
    assert odd.quantization is not None
    odd.quantization.products.append(dataclasses.replace(product(0, "x", 1), name="pooler"))

    with pytest.raises(UsageError, match=f"{FAST}: product 'pooler': expected layer.NUMBER.PART"):
        draw_layer_errors([odd], "made up")


def test_the_command_writes_a_picture_or_says_what_is_wrong(tiny_bundle: Path, tmp_path: Path) -> None:
    app = Typer()
    app.command()(main)
    bundle = Bundle.open(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    manifest = bundle.manifest
    words = [str(bundle.folder), "--out", str(tmp_path / "new" / "errors.png")]

    assert CliRunner().invoke(app, words).exit_code == UsageError.exit_code

    whole = engine(FAST, {part: [1e-3, 1e-4] for part in PARTS})
    entry = dataclasses.replace(whole, file=manifest.engines[0].file)
    (bundle.folder / MANIFEST_NAME).write_text(dataclasses.replace(manifest, engines=[entry]).to_json())
    assert CliRunner().invoke(app, words).exit_code == 0
    assert (tmp_path / "new" / "errors.png").read_bytes().startswith(b"\x89PNG")
