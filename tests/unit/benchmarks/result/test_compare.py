from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from markdown_it import MarkdownIt

from mexma_benchmarks.report.comparison import render_comparison
from mexma_benchmarks.result.compare import UnlikeHostsError, compare
from mexma_benchmarks.result.environment import Environment
from mexma_benchmarks.result.result import Fidelity, Result, SubjectResult, Timing, Workload
from mexma_export.parity.figures import ParityFigures
from mexma_runtime.hardware import Hardware

SHAPE = Workload(kind="ids", name="1 x 16 tokens", n_sentences=1, n_tokens=16, batch=1, length=16)
START = Workload(kind="cold start", name="process start to first vector", n_sentences=1, n_tokens=0)


def with_samples(base: Result, workload: Workload, **samples_ms: list[float]) -> Result:
    result = copy.deepcopy(base)
    result.models[0].timings.append(Timing(workload=workload, heat=0, samples_ms=samples_ms))
    return result


def noisy(random: np.random.Generator, ms: float, drift: np.ndarray | float = 1.0, n: int = 9) -> list[float]:
    samples: list[float] = (ms * drift * (1 + 0.02 * random.standard_normal(n))).tolist()
    return samples


def test_a_shift_of_ten_percent_is_found_and_noise_is_not(small_result: Result) -> None:
    random = np.random.default_rng(0)
    drift = random.uniform(0.7, 1.4, 9)  # of the machine: it cancels
    a = with_samples(small_result, SHAPE, theirs=noisy(random, 100, drift), ours=noisy(random, 50, drift))
    drift = 1.3 * random.uniform(0.7, 1.4, 9)
    faster = with_samples(small_result, SHAPE, theirs=noisy(random, 100, drift), ours=noisy(random, 50 / 1.1, drift))
    same = with_samples(small_result, SHAPE, theirs=noisy(random, 100, drift), ours=noisy(random, 50, drift))

    found = {change.subject: change for change in compare(a, faster).speeds}["ours"]
    nothing = {change.subject: change for change in compare(a, same).speeds}["ours"]

    assert found.is_beyond_noise
    assert found.change.low > 1
    assert found.change.median == pytest.approx(1.1, abs=0.03)
    assert found.a.median == pytest.approx(2, abs=0.1)
    assert found.b.median == pytest.approx(2.2, abs=0.1)
    assert not nothing.is_beyond_noise


def test_pure_noise_passes_as_seldom_as_the_rule_says(small_result: Result) -> None:
    random = np.random.default_rng(1)
    passed = 0
    for _ in range(400):
        a = with_samples(small_result, SHAPE, theirs=noisy(random, 100), ours=noisy(random, 50))
        b = with_samples(small_result, SHAPE, theirs=noisy(random, 100), ours=noisy(random, 50))
        passed += sum(change.is_beyond_noise for change in compare(a, b).speeds)

    assert 0 < passed < 20  # 8 of 800 are expected


def test_the_baseline_is_compared_by_its_times(small_result: Result) -> None:
    a = with_samples(small_result, START, theirs=[100.0] * 6, ours=[10.0] * 6)
    b = with_samples(small_result, START, theirs=[80.0] * 6, ours=[8.0] * 6)

    theirs, ours = compare(a, b).speeds

    assert (theirs.subject, theirs.is_baseline, theirs.change.median) == ("theirs", True, 1.25)
    assert theirs.is_beyond_noise
    assert (ours.subject, ours.change.median) == ("ours", 1.0)
    assert not ours.is_beyond_noise


def test_four_rounds_cannot_tell(small_result: Result) -> None:
    a = with_samples(small_result, SHAPE, theirs=[100.0] * 4, ours=[10.0] * 4)
    b = with_samples(small_result, SHAPE, theirs=[100.0] * 5, ours=[5.0] * 5)

    change = {change.subject: change for change in compare(a, b).speeds}["ours"]

    assert change.change.median == 2.0
    assert not change.has_enough
    assert not change.is_beyond_noise


Change = Callable[[Result], None]


def environment(**changes: object) -> Change:
    def apply(result: Result) -> None:
        result.environment = dataclasses.replace(result.environment, **changes)  # type: ignore[arg-type]

    return apply


def hardware(**changes: object) -> Change:
    def apply(result: Result) -> None:
        changed: Hardware = dataclasses.replace(result.environment.hardware, **changes)  # type: ignore[arg-type]
        result.environment = dataclasses.replace(result.environment, hardware=changed)

    return apply


def threads(result: Result) -> None:
    result.n_threads = 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hardware(processor="Other 1"), "processor: Example 9000 and Other 1"),
        (hardware(n_physical_cores=3), "physical cores: 2 and 3"),
        (hardware(n_logical_cpus=8), "logical CPUs: 4 and 8"),
        (hardware(cpu_quota=1.5), "CPU quota: none and 1.5"),
        (hardware(instruction_sets=("avx2",)), "instruction sets: avx2 avx512f and avx2"),
        (hardware(memory_total_bytes=32_000_000_000), "memory: 24.0 GB and 32.0 GB"),
        (hardware(memory_total_bytes=None), "memory: 24.0 GB and unknown"),
        (environment(gpus=("H200, 143771 MiB",)), "GPUs: none and H200, 143771 MiB"),
        (threads, "threads: 2 and 7"),
    ],
)
def test_unlike_hosts_are_refused(small_result: Result, change: Change, message: str) -> None:
    other = copy.deepcopy(small_result)
    change(other)

    with pytest.raises(UnlikeHostsError, match="--allow-unlike-hosts") as refused:
        compare(small_result, other)

    assert [str(difference) for difference in refused.value.differences] == [message]
    assert message in str(refused.value)
    assert refused.value.exit_code == 2
    assert compare(small_result, other, allow_unlike_hosts=True).hosts == refused.value.differences


@pytest.mark.parametrize(
    "change",
    [
        hardware(memory_total_bytes=24_100_000_000),
        hardware(memory_available_bytes=1),
        environment(system="Linux 6.2 x86_64", load_average=3.0),
    ],
)
def test_the_same_host_may_differ_in_what_is_not_its_speed(small_result: Result, change: Change) -> None:
    other = copy.deepcopy(small_result)
    change(other)

    assert compare(small_result, other).hosts == []


def test_what_may_explain_a_change_is_listed(small_result: Result, environment: Environment) -> None:
    other = copy.deepcopy(small_result)
    other.environment = dataclasses.replace(
        environment,
        commit="fedcba",
        versions=environment.versions | {"torch": "2.14.0"},
        variables={"ONEDNN_MAX_CPU_ISA": "AVX2"},
    )
    other.settings = {"effort": "full"}
    other.models[0].subject("ours").versions = {"onnxruntime": "1.32"}

    differences = [str(difference) for difference in compare(small_result, other).settings]

    assert differences == [
        "commit: 0123456789abcdef and fedcba",
        "torch: 2.13.0 and 2.14.0",
        "ONEDNN_MAX_CPU_ISA: none and AVX2",
        "setting effort: quick and full",
        "small, ours, versions: none and onnxruntime 1.32",
    ]


def test_what_only_one_has_is_listed(small_result: Result) -> None:
    small_result.models[0].subjects.append(SubjectResult(name="peer", role="peer", adapter="x", options={}))
    a = with_samples(small_result, SHAPE, theirs=[1.0], ours=[1.0], peer=[1.0])
    b = with_samples(small_result, SHAPE, theirs=[1.0])
    b.models[0].timings.append(Timing(workload=START, heat=0, samples_ms={"theirs": [1.0], "ours": [1.0]}))
    b.models.append(dataclasses.replace(a.models[0], pooling="mean"))

    comparison = compare(a, b)

    assert comparison.only_a == ["small, ids: 1 x 16 tokens, ours", "small, peer"]
    assert comparison.only_b == [
        "small, cold start: process start to first vector",
        "small, mean pooling, held against theirs",
    ]
    assert [change.subject for change in comparison.speeds] == ["theirs"]


def test_models_are_the_same_by_weights_pooling_and_baseline(small_result: Result) -> None:
    a = with_samples(small_result, SHAPE, theirs=[1.0], ours=[1.0])
    renamed, other_weights, other_baseline = copy.deepcopy(a), copy.deepcopy(a), copy.deepcopy(a)
    renamed.models[0].name = "elsewhere"
    other_weights.models[0].weights_sha256 = "1" * 64
    other_baseline.models[0].baseline = "ours"

    assert len(compare(a, renamed).speeds) == 2
    assert compare(a, other_weights).speeds == []
    assert compare(a, other_baseline).speeds == []


@pytest.fixture
def figures() -> ParityFigures:
    return ParityFigures(
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


def test_fidelity_is_compared_on_one_corpus_alone(small_result: Result, figures: ParityFigures) -> None:
    small_result.models[0].subject("ours").fidelity = Fidelity(figures=figures, invariance=None)
    other = copy.deepcopy(small_result)
    other.models[0].subject("ours").fidelity = Fidelity(
        figures=dataclasses.replace(figures, cosine_min=0.95), invariance=None
    )
    elsewhere = copy.deepcopy(other)
    elsewhere.models[0].fidelity_corpus = "another"

    (change,) = compare(small_result, other).fidelities

    assert (change.a.cosine_min, change.b.cosine_min) == (0.91, 0.95)
    assert "0.910000" in render_comparison(compare(small_result, other))
    assert compare(small_result, elsewhere).fidelities == []
    assert "small, corpus of the fidelity: none and another" in map(str, compare(small_result, elsewhere).settings)


@pytest.mark.parametrize("as_markdown", [False, True])
def test_the_text_says_what_is_larger_than_the_noise(small_result: Result, as_markdown: bool) -> None:
    a = with_samples(small_result, SHAPE, theirs=[100.0] * 6, ours=[10.0] * 6)
    b = with_samples(small_result, SHAPE, theirs=[100.0] * 6, ours=[8.0] * 6)
    b.environment = dataclasses.replace(b.environment, commit="[red]fedcba|x")

    text = render_comparison(compare(a, b), as_markdown=as_markdown)

    noise, beyond = text.index("Within the noise"), text.index("Larger than the noise")
    assert noise < text.index("100 ms") < beyond < text.index("1.250 [1.250, 1.250]")
    assert "2 were compared" in text
    if as_markdown:
        page = MarkdownIt("commonmark").enable("table").render(text)
        assert page.count("<tr>") == 6
        assert "[red]fedcba|x</td>" in page
    else:
        assert "[red]fedcba|x" in text


def test_nothing_larger_than_the_noise_is_said_too(small_result: Result) -> None:
    a = with_samples(small_result, SHAPE, theirs=[100.0] * 6, ours=[10.0] * 6)

    text = render_comparison(compare(a, a))

    assert "Larger than the noise: nothing" in text
    assert "Not the same" not in text
