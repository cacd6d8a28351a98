from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from mexma_benchmarks.report.charts import draw_charts
from mexma_benchmarks.report.document import markdown, unstable, write_report
from mexma_benchmarks.result.result import (
    BesideRun,
    ClientRun,
    Fidelity,
    LoadRun,
    ModelResult,
    Result,
    SubjectResult,
    Timing,
    Workload,
)
from mexma_export.parity.figures import InvarianceFigures, ParityFigures

SHAPE = Workload(kind="ids", name="4 x 16 tokens", n_sentences=4, n_tokens=64, batch=4, length=16)
TEXTS = Workload(kind="texts", name="100 texts", n_sentences=100, n_tokens=1000)
START = Workload(kind="cold start", name="process start to first vector", n_sentences=1, n_tokens=0)
FIGURES = ParityFigures(
    n_sentences=50,
    cosine_min=0.91,
    cosine_p1=0.92,
    cosine_mean=0.93,
    max_abs_difference=0.004,
    norm_ratio_min=0.99,
    norm_ratio_max=1.02,
    relative_error_mean=0.05,
    relative_error_max=0.06,
    top1_agreement=0.71,
    top10_agreement=0.72,
    mixed_top1_agreement=0.73,
    mixed_top10_agreement=0.74,
)


@pytest.fixture
def model(small_result: Result) -> ModelResult:
    return small_result.models[0]


def add(model: ModelResult, workload: Workload, **samples_ms: list[float]) -> Timing:
    timing = Timing(workload=workload, heat=0, samples_ms=samples_ms)
    model.timings.append(timing)
    return timing


def rows(text: str, subject: str) -> list[list[str]]:
    """Cells behind the subject of each of its rows."""
    return [
        [cell.strip() for cell in line.strip("| ").split(" | ")[1:]]
        for line in text.splitlines()
        if line.startswith(f"| {subject} |")
    ]


def section(text: str, title: str) -> str:
    return text.split(f"### {title}\n", 1)[1].split("\n##", 1)[0]


def test_ids_in_have_medians_of_the_samples_and_of_their_ratios(small_result: Result, model: ModelResult) -> None:
    add(model, SHAPE, theirs=[40.0, 40.0, 80.0, 40.0, 40.0, 44.0], ours=[20.0, 20.0, 40.0, 20.0, 20.0, 20.0])

    text = section(markdown(small_result, {}), "Token ids in")

    assert "| subject | 4 x 16 | rounds |" in text
    # 4 sentences of 64 tokens together in 20 and 40 ms.
    assert rows(text, "ours") == [["20.0 [20.0, 40.0]", "6"], ["2.00 [2.00, 2.20]"], ["3,200 (200)"]]
    assert rows(text, "theirs") == [["40.0 [40.0, 80.0]", "6"], ["1,600 (100)"]]


def test_the_ratio_is_the_median_of_the_rounds_not_of_the_medians(small_result: Result, model: ModelResult) -> None:
    # The medians are 35 and 27.5 ms.
    add(model, SHAPE, theirs=[10.0, 20.0, 30.0, 40.0, 50.0, 60.0], ours=[5.0, 10.0, 15.0, 40.0, 50.0, 60.0])

    assert rows(markdown(small_result, {}), "ours")[2] == ["1.50 [1.00, 2.00]"]


def test_texts_in_have_rates_and_the_split(small_result: Result, model: ModelResult) -> None:
    timing = add(model, TEXTS, theirs=[400.0] * 6, ours=[100.0] * 6)
    timing.stages_ms["ours"] = [{"tokenize": 1.0, "copy": 0.5, "compute": 98.0}, {"tokenize": 3.0, "compute": 99.0}]

    text = section(markdown(small_result, {}), "Texts in")

    assert "100 texts: 100 sentences, 1,000 tokens." in text
    assert rows(text, "ours") == [
        ["100 [100, 100]", "4.00 [4.00, 4.00]", "1,000", "10,000", "6", "2.00 / 0.500 / 98.5"]
    ]
    assert rows(text, "theirs") == [["400 [400, 400]", "1", "250", "2,500", "6", "-"]]


def test_cold_starts_have_times_and_memory(small_result: Result, model: ModelResult) -> None:
    add(model, START, theirs=[3000.0] * 3, ours=[500.0] * 3)
    model.subject("ours").peak_rss_bytes = [100_000_000, 300_000_000, 110_000_000]

    text = section(markdown(small_result, {}), "Cold start")

    assert rows(text, "ours") == [["500 [500, 500]*", "6.00 [6.00, 6.00]*", "110 MB", "3"]]
    assert rows(text, "theirs") == [["3,000 [3,000, 3,000]*", "1", "-", "3"]]


def test_memory_is_told_at_the_start_and_after_all_workloads(small_result: Result, model: ModelResult) -> None:
    model.subject("ours").peak_rss_bytes = [110_000_000]
    model.subject("ours").peak_rss_after_bytes = 450_000_000

    assert rows(section(markdown(small_result, {}), "Subjects"), "ours")[0][-2:] == ["110 MB", "450 MB"]


def test_load_has_percentiles_and_the_highest_rate_in_bounds(small_result: Result, model: ModelResult) -> None:
    def run(rate: float, latencies_ms: list[float], n_arrivals: int) -> None:
        model.load_runs.append(
            LoadRun(
                subject="ours",
                rate_per_s=rate,
                duration_s=1,
                seed=0,
                n_arrivals=n_arrivals,
                latencies_ms=latencies_ms,
            )
        )

    run(5, [float(ms) for ms in range(1, 201)], 200)
    run(10, [300.0] * 50, 80)
    model.p99_bound_ms = 250.0

    text = section(markdown(small_result, {}), "Under load")

    assert "kept p99 within 250 ms" in text
    assert rows(text, "ours") == [
        ["5.00"],
        ["5.00", "200", "100", "180", "198"],
        ["10.0", "50†", "300", "300", "300\\*"],
    ]
    assert "p99.9" not in text
    assert "Of fewer than 100 requests: the slowest one." in text
    assert "Given up" in text


def test_p999_is_shown_from_ten_thousand_requests_on(small_result: Result, model: ModelResult) -> None:
    latencies_ms = [float(ms) for ms in range(1, 10_001)]
    model.load_runs.append(
        LoadRun(subject="ours", rate_per_s=5, duration_s=1, seed=0, n_arrivals=10_000, latencies_ms=latencies_ms)
    )

    text = section(markdown(small_result, {}), "Under load")

    assert rows(text, "ours") == [["5.00", "10,000", "5,000", "9,000", "9,900", "9,990"]]


def test_many_callers_are_held_against_one_with_as_many_texts(small_result: Result, model: ModelResult) -> None:
    def run(n_clients: int, texts_a_call: int, n_calls: int) -> None:
        latencies_ms = [float(ms) for ms in range(1, n_calls + 1)]
        model.client_runs.append(
            ClientRun(
                subject="ours",
                clients="threads",
                n_clients=n_clients,
                texts_a_call=texts_a_call,
                seconds=2,
                latencies_ms=latencies_ms,
            )
        )

    for n_calls in ((20, 90, 4), (20, 110, 2), (20, 100, 3)):  # of one round, in which many have 35, 86 and 52 %
        for (n_clients, texts_a_call), n in zip(((1, 1), (64, 1), (1, 64)), n_calls, strict=True):
            run(n_clients, texts_a_call, n)
    model.beside_runs.append(
        BesideRun(
            subject="ours",
            n_texts=4096,
            every_ms=100,
            latencies_ms=[40.0, 50.0, 90.0],
            alone_ms=[10.0],
            batch_ms=[50.0, 40.0, 30.0],
        )
    )

    text = section(markdown(small_result, {}), "Many callers at once")

    assert rows(text, "ours") == [
        ["1 thread", "1", "10.0 [10.0, 10.0]*", "-", "10.0", "20.0"],
        ["64 threads", "1", "50.0 [45.0, 55.0]*", "52%", "50.0", "107"],
        ["1 thread", "64", "96.0 [64.0, 128.0]*", "-", "2.00", "4.00"],
        ["3", "10.0", "40.0", "50.0", "90.0", "2.00"],
    ]


def test_fidelity_has_every_figure_and_the_worst_groups(small_result: Result, model: ModelResult) -> None:
    better = dataclasses.replace(FIGURES, top10_agreement=0.99, cosine_min=0.1)
    model.subject("ours").fidelity = Fidelity(
        figures=FIGURES,
        invariance=InvarianceFigures(cosine_min=0.999, max_abs_difference=2e-5),
        by_length={"1-8": better, "9-16": FIGURES},
        by_language={"de": dataclasses.replace(FIGURES, top10_agreement=None), "en": better},
        uncertified="judged on a CPU",
        calibration="some text, none of it judged",
    )
    model.subject("theirs").fidelity = Fidelity(
        figures=dataclasses.replace(FIGURES, relative_error_mean=None, top1_agreement=None), invariance=None
    )
    model.reference, model.fidelity_corpus = "transformers 5", "sample"

    text = section(markdown(small_result, {}), "Fidelity")

    assert "Against transformers 5; sample." in text
    assert "random" in text  # the model is a stand-in
    assert rows(text, r"ours (uncertified)") == [
        ["0.910000", "0.920000", "0.930000", "4.0e-03", "0.9900 to 1.0200", "5.0e-02", "6.0e-02"],
        ["0.7100", "0.7200", "0.7300", "0.7400", "0.999000", "2.0e-05"],
        ["9-16: 0.7200, 0.910000 (50 sentences)", "en: 0.9900, 0.100000 (50 sentences)"],
    ]
    assert rows(text, "theirs") == [
        ["0.910000", "0.920000", "0.930000", "4.0e-03", "0.9900 to 1.0200", "-", "6.0e-02"],
        ["-", "0.7200", "0.7300", "0.7400", "-", "-"],
        ["-", "-"],
    ]
    assert "Uncertified, ours: judged on a CPU" in text
    assert "Calibrated on some text, none of it judged: ours." in text


def test_a_subject_that_was_not_measured_has_a_row_that_says_why(small_result: Result, model: ModelResult) -> None:
    model.subjects += [
        SubjectResult(
            name="peer", role="peer", adapter="x", options={}, status="unavailable", reason="not | installed\nhere"
        ),
        SubjectResult(name="broken", role="peer", adapter="x", options={}, status="failed", reason="x" * 1000),
    ]
    ours = model.subject("ours")
    ours.status, ours.reason, ours.versions = "failed", "ended by signal 9", {"onnxruntime": "1.31.1"}

    text = section(markdown(small_result, {}), "Subjects")

    assert r"| peer | peer | unavailable: not \| installed here | - |" in text
    assert f"| broken | peer | failed: {'x' * 300} ... |" in text
    assert rows(text, "ours")[0][1] == "onnxruntime 1.31.1"
    assert "- ours, failed: ended by signal 9" in text


def test_the_conditions_say_where_and_how(small_result: Result) -> None:
    text = markdown(small_result, {})

    for fact in (
        "| processor | Example 9000, 2 cores (4 logical) |",
        "| instruction sets | avx2, avx512f |",
        "| GPU | none |",
        "| memory | 24,000 MB |",
        "| threads of every subject | 2 |",
        "| versions | Python 3.11.7, mexma-runtime 0.1.0, torch 2.13.0 |",
        "| commit | 0123456789abcdef |",
        "| settings | effort quick |",
        "Command: `mexma bench run`",
    ):
        assert fact in text


def test_a_summary_joins_speed_of_the_largest_and_fidelity_of_trained_weights(full_result: Result) -> None:
    full_result.models[1].subjects[5].fidelity = Fidelity(figures=FIGURES, invariance=None)

    text = markdown(full_result, {}).split("## Conditions")[0]

    assert "on standin:mexma; neighbours kept on all-MiniLM-L6-v2" in text
    (best,) = rows(text, "mexma portable.int8.fast.uint8 on openvino")
    assert best[1].startswith("6.")
    assert best[2] == "0.7200"
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[2].startswith("| mexma portable.int8.fast.uint8 on openvino |")  # the fastest first
    assert lines[-1].startswith("| PyTorch fp32 |")


def test_subjects_that_share_no_round_with_the_baseline_come_last(full_result: Result) -> None:
    nncf, pytorch = "OpenVINO NNCF int8", full_result.models[0].baseline
    for timing in full_result.models[0].timings:
        timing.samples_ms = {name: ms for name, ms in timing.samples_ms.items() if (timing.heat == 0) != (name == nncf)}
    full_result.hold_against(nncf)

    lines = [line for line in markdown(full_result, {}).split("## Conditions")[0].splitlines() if line[:2] == "| "]
    assert lines[2].startswith(f"| {nncf} |")
    assert all(line.split(" | ")[2] == "-" for line in lines[3:])
    assert any(pytorch in line for line in lines[3:])


def test_an_unstable_run_says_which_ratios_differed(small_result: Result, model: ModelResult) -> None:
    add(model, SHAPE, theirs=[10.0] * 8, ours=[5.0] * 8)
    add(model, TEXTS, theirs=[10.0] * 8, ours=[5.0, 9.0] * 4)

    warnings = list(unstable(small_result))

    assert len(warnings) == 1
    assert warnings[0].startswith("small, ours: 100 texts (57%)")  # 10/5 and 10/9: 0.89 wide around 1.56
    assert warnings[0] in markdown(small_result, {})


def test_a_calm_run_has_no_warnings(small_result: Result, model: ModelResult) -> None:
    add(model, SHAPE, theirs=[10.0] * 8, ours=[5.0] * 8)

    text = markdown(small_result, {})

    assert "unstable" not in text
    assert "did not finish" not in text


def test_a_machine_that_was_busy_is_told_of(small_result: Result) -> None:
    small_result.environment = dataclasses.replace(small_result.environment, load_average=3.0)

    assert "3.0 processes were running" in markdown(small_result, {})


def test_an_interrupted_run_shows_what_it_has(small_result: Result, model: ModelResult) -> None:
    small_result.is_complete = False
    add(model, SHAPE, theirs=[4.0, 4.0], ours=[2.0])
    add(model, TEXTS, theirs=[], ours=[])
    add(model, START)

    text = markdown(small_result, {})

    assert "did not finish" in text
    assert rows(section(text, "Token ids in"), "ours") == [
        ["2.00 [2.00, 2.00]*", "1"],
        ["2.00 [2.00, 2.00]*"],
        ["32,000 (2,000)"],
    ]
    assert "### Texts in" not in text
    assert "### Cold start" not in text


def test_a_subject_without_the_interface_is_named(small_result: Result, model: ModelResult) -> None:
    timing = add(model, SHAPE, theirs=[4.0])
    timing.not_offered["ours"] = "it takes texts only"

    assert "Without: ours (it takes texts only)" in section(markdown(small_result, {}), "Token ids in")


def test_an_empty_result_has_a_report(small_result: Result, tmp_path: Path) -> None:
    small_result.models.clear()

    written = write_report(small_result, tmp_path / "new")

    assert [path.name for path in written] == ["report.md", "report.html"]
    assert "nothing measured" in written[0].read_text()


def test_many_shapes_are_spread_over_tables(full_result: Result) -> None:
    text = section(markdown(full_result, {}), "Token ids in")

    heads = re.findall(r"\| subject \| (.*?) \| rounds \|", text)
    assert heads == ["1 x 8 | 1 x 16 | 1 x 32 | 1 x 64 | 1 x 128 | 1 x 256", "4 x 32 | 8 x 32 | 16 x 32 | 32 x 32"]


def test_a_report_is_markdown_a_page_and_all_pictures(full_result: Result, tmp_path: Path) -> None:
    written = write_report(full_result, tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written}
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", (tmp_path / "report.md").read_text())
    assert sorted(pictures) == sorted(path.name for path in written if path.suffix == ".png")
    assert len(pictures) == len(draw_charts(full_result)) == 7
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
