from __future__ import annotations

import dataclasses
from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text

from mexma_benchmarks.report.axes import MAX_LINES, new_figure, set_log
from mexma_benchmarks.report.charts import Chart, chosen, draw_charts, fidelity_points, slugs
from mexma_benchmarks.report.palette import style, styles
from mexma_benchmarks.result.result import LoadRun, Result, Timing, Workload

Misplaced = Callable[[Chart], list[str]]


def texts(chart: Chart) -> list[Text]:
    """What is written in a chart, laid out."""
    chart.figure.draw_without_rendering()
    return [text for text in chart.figure.findobj(Text) if text.get_visible() and text.get_text()]


def test_no_text_of_any_chart_lies_on_another_or_outside(full_result: Result, misplaced: Misplaced) -> None:
    charts = draw_charts(full_result)

    assert [chart.name for chart in charts] == [
        "latency-standin-mexma",
        "throughput-standin-mexma",
        "load-standin-mexma",
        "latency-all-minilm-l6-v2",
        "throughput-all-minilm-l6-v2",
        "load-all-minilm-l6-v2",
        "fidelity",
    ]
    for chart in charts:
        assert len(texts(chart)) > 10
        assert misplaced(chart) == []


def test_rates_close_together_do_not_lie_on_each_other(full_result: Result, misplaced: Misplaced) -> None:
    """Those of a real run, where every subject was refined between other rates."""
    rates = (2.6, 3.95, 5.3, 8.15, 11.0, 16.0, 21.0, 32.0, 42.0, 63.5, 85.0)
    runs = full_result.models[0].load_runs
    full_result.models[0].load_runs = [dataclasses.replace(runs[0], rate_per_s=rate) for rate in rates]

    [load] = [chart for chart in draw_charts(full_result) if chart.name == "load-standin-mexma"]

    assert misplaced(load) == []


def test_long_names_are_folded(full_result: Result, misplaced: Misplaced) -> None:
    for model in full_result.models:
        model.name += " from some folder with a long name, pooled by its first token, once more"
        for timing in model.timings:
            timing.samples_ms = {
                f"{name}, of a checkpoint far away, by hand": ms for name, ms in timing.samples_ms.items()
            }
        model.baseline += ", of a checkpoint far away, by hand"
        for subject in model.subjects:
            subject.name += ", of a checkpoint far away, by hand"
        for run in model.load_runs:
            run.subject += ", of a checkpoint far away, by hand"

    for chart in draw_charts(full_result):
        assert misplaced(chart) == []


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 2000), min_size=2, max_size=12, unique=True),
    ms=st.lists(st.floats(1e-2, 1e5), min_size=12, max_size=12),
)
def test_ticks_keep_apart_whatever_was_measured(misplaced: Misplaced, lengths: list[int], ms: list[float]) -> None:
    figure = new_figure("title", "subtitle")
    ax = figure.add_subplot()
    ax.plot(lengths, ms[: len(lengths)])
    set_log(ax, "x", sorted(lengths))
    set_log(ax, "y")

    assert misplaced(Chart(name="x", title="x", figure=figure)) == []


def test_a_chart_is_a_picture_and_a_drawing(full_result: Result) -> None:
    chart = draw_charts(full_result)[0]

    png, svg = chart.png(), chart.svg()

    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20]) == 1380  # pixels wide
    assert ">mexma fused.fp32 on onnxruntime</text>" in svg
    assert draw_charts(full_result)[0].svg() == draw_charts(full_result)[0].svg()


def test_drawing_leaves_matplotlib_as_it_was(full_result: Result) -> None:
    before = dict(matplotlib.rcParams)

    for chart in draw_charts(full_result):
        chart.svg()

    assert dict(matplotlib.rcParams) == before


def test_what_has_no_data_has_no_chart(small_result: Result) -> None:
    model = small_result.models[0]
    for batch, length in ((1, 16), (4, 32)):
        name = f"{batch} x {length}"
        workload = Workload(kind="ids", name=name, n_sentences=batch, n_tokens=8, batch=batch, length=length)
        model.timings.append(Timing(workload=workload, heat=0, samples_ms={"ours": [1.0]}))
    one_text = Workload(kind="texts", name="1 text", n_sentences=1, n_tokens=8, batch=1, length=8)
    model.timings.append(Timing(workload=one_text, heat=0, samples_ms={"ours": [1.0]}))
    model.load_runs.append(
        LoadRun(subject="ours", rate_per_s=5, duration_s=1, seed=0, n_arrivals=1, latencies_ms=[1.0])
    )

    assert draw_charts(small_result) == []


def test_a_chart_has_a_line_a_subject_up_to_what_is_legible(
    full_result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mexma_benchmarks.report.charts.MAX_LINES", 12)
    latency, throughput, load = draw_charts(full_result)[:3]

    for chart in (latency, throughput):
        assert len(chart.figure.axes[0].lines) == 12
        assert any("12 of 16 subjects" in text.get_text() for text in texts(chart))
    p50, p99 = load.figure.axes
    assert (len(p50.lines), len(p99.lines)) == (6, 7)  # and the bound
    engine = next(
        line for line in latency.figure.axes[0].lines if line.get_label() == "mexma fused.fp32 on onnxruntime"
    )
    assert list(np.asarray(engine.get_xdata())) == [8, 16, 32, 64, 128, 256]


def test_every_role_is_among_the_chosen(full_result: Result) -> None:
    model = full_result.models[0]
    names = chosen(model, [subject.name for subject in model.subjects])

    assert len(names) == MAX_LINES
    assert {model.subject(name).role for name in names} == {"engine", "baseline", "peer"}
    assert model.baseline in names
    assert [name for name in names if model.subject(name).role == "engine"] == [
        subject.name for subject in model.subjects if subject.role == "engine"
    ]


def test_a_subject_looks_like_no_other(full_result: Result) -> None:
    looks = styles(full_result.models)

    assert len({(look.colour, look.marker) for look in looks.values()}) == len(looks) == 20
    assert len({(style("engine", i).colour, style("engine", i).marker) for i in range(20)}) == 20
    assert {look.face for look in looks.values() if look.role == "peer"} == {"none"}


def test_fidelity_is_held_against_the_speed_of_the_other_model(full_result: Result) -> None:
    standin, trained = full_result.models
    trained.subjects[-3].fidelity = None  # infinity-emb
    figures = trained.subjects[3].fidelity
    assert figures is not None
    figures.figures = dataclasses.replace(figures.figures, top10_agreement=0.5)

    points = fidelity_points(standin, trained)

    assert points["PyTorch fp32"] == (1.0, 1.0)
    assert "infinity-emb" not in points
    speed, kept = points["mexma portable.fp32 on openvino"]
    assert speed == pytest.approx(2.2, rel=0.05)
    assert kept == 0.5
    assert len(points) == 17


def test_models_of_one_name_have_files_of_their_own(full_result: Result) -> None:
    models = [dataclasses.replace(full_result.models[0], name=name) for name in ("A/b", "a b", "c", "?")]

    assert slugs(models) == ["a-b-1", "a-b-2", "c", "model"]


def test_an_engine_of_a_long_name_is_named_at_its_point(full_result: Result) -> None:
    fidelity = draw_charts(full_result)[-1]

    labels = [text.get_text() for text in fidelity.figure.axes[0].texts]
    assert "mexma portable.int8.precise.uint8\non openvino" in labels
