from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.bundle.tuning import (
    FILE,
    AttentionSample,
    Sample,
    Tuning,
    choose_crossover,
    choose_limit,
    read_tuning,
    writable_file,
    write_tuning,
)
from mexma_runtime.errors import BundleError, FileError


@pytest.fixture
def engine(bundle_folder: Path) -> EngineEntry:
    return Bundle.open(bundle_folder).manifest.engines[0]


def sample(n_tokens: int, graph_ms: float, direct_ms: float) -> Sample:
    return Sample(n_tokens=n_tokens, graph_ms=[graph_ms, graph_ms * 9, graph_ms], direct_ms=[direct_ms] * 3)


def attention_sample(mean_tokens: int, efficient_ms: float, flash_ms: float) -> AttentionSample:
    return AttentionSample(
        mean_tokens=mean_tokens, efficient_ms=[efficient_ms, efficient_ms * 9, efficient_ms], flash_ms=[flash_ms] * 3
    )


def test_what_was_measured_is_read_again_for_the_same_gpu_and_graph(tmp_path: Path, engine: EngineEntry) -> None:
    ours = Tuning(
        graph_up_to_tokens=256,
        max_batch_tokens=4096,
        flash_above_mean_tokens=96,
        samples=[sample(8, 0.5, 2)],
        attention_samples=[attention_sample(96, 1, 2), attention_sample(128, 2, 1)],
    )
    theirs = Tuning(graph_up_to_tokens=1024)
    assert read_tuning(tmp_path, "H200", engine) == Tuning()
    write_tuning(tmp_path, "L4", engine, theirs)
    assert write_tuning(tmp_path, "H200", engine, Tuning()) == write_tuning(tmp_path, "H200", engine, ours)
    assert read_tuning(tmp_path, "H200", engine) == ours
    assert read_tuning(tmp_path, "L4", engine) == theirs
    assert read_tuning(tmp_path, "T4", engine) == Tuning()
    assert [path.name for path in (tmp_path / FILE).parent.iterdir()] == [FILE.name]


def test_what_was_measured_before_there_were_two_kernels_is_still_read(tmp_path: Path, engine: EngineEntry) -> None:
    sample_of_then = {"n_tokens": 8, "graph_ms": [0.5, 0.6], "direct_ms": [2.0, 2.1]}
    tuning = {"graph_up_to_tokens": 512, "max_batch_tokens": 65536, "samples": [sample_of_then]}
    entry = {"gpu": "H200", "engine": engine.name, "file": engine.file, "tuning": tuning}
    path = writable_file(tmp_path)
    path.write_text(json.dumps({"schema": 1, "entries": [entry]}))
    kept = Tuning(graph_up_to_tokens=512, samples=[Sample(n_tokens=8, graph_ms=[0.5, 0.6], direct_ms=[2.0, 2.1])])
    assert read_tuning(tmp_path, "H200", engine) == kept
    write_tuning(tmp_path, "L4", engine, Tuning())
    assert json.loads(path.read_text())["schema"] == 2
    assert read_tuning(tmp_path, "H200", engine) == kept


def test_a_file_that_cannot_be_read_is_not_passed_over(tmp_path: Path, engine: EngineEntry) -> None:
    path = write_tuning(tmp_path, "H200", engine, Tuning())
    for text in ("{", "[]", '{"schema": 3}', '{"schema": 2}', '{"schema": 1}', '{"schema": 1, "entries": [{}]}'):
        path.write_text(text)
        with pytest.raises(BundleError, match=r"tuning\.json: "):
            read_tuning(tmp_path, "H200", engine)


@pytest.mark.parametrize(
    ("name", "value"), [("max_batch_tokens", 0), ("graph_up_to_tokens", -1), ("flash_above_mean_tokens", 10**30)]
)
def test_numbers_that_cannot_be_are_told_with_their_file(
    name: str, value: int, tmp_path: Path, engine: EngineEntry
) -> None:
    path = write_tuning(tmp_path, "a GPU", engine, Tuning())
    document = json.loads(path.read_text(encoding="utf-8"))
    document["entries"][0]["tuning"][name] = value
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(BundleError, match=rf"tuning\.json: .*{name}: expected [01] tokens? or more, got .*--tune"):
        read_tuning(tmp_path, "a GPU", engine)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    assert writable_file(tmp_path) == tmp_path / FILE
    assert list((tmp_path / FILE).parent.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"tuning\.json: cannot be written: Not a directory"):
        writable_file(tmp_path / "file")


def test_graphs_are_taken_as_long_as_each_is_faster() -> None:
    faster, slower, again = sample(8, 1, 2), sample(16, 3, 2), sample(32, 1, 2)
    assert choose_limit([faster]) == 8
    assert choose_limit([again, slower, faster]) == 8
    assert choose_limit([slower]) == choose_limit([]) == 0


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=6))
def test_no_bucket_within_the_limit_is_slower(medians: list[tuple[int, int]]) -> None:
    samples = [sample(2**place, *pair) for place, pair in enumerate(medians)]
    limit = choose_limit(samples)
    within = [pair for place, pair in enumerate(medians) if 2**place <= limit]
    assert all(graph <= direct for graph, direct in within)
    if len(within) < len(medians):
        graph, direct = medians[len(within)]
        assert graph > direct


def test_either_kernel_runs_where_it_is_faster() -> None:
    short, even, long = attention_sample(16, 1, 2), attention_sample(64, 1, 1), attention_sample(128, 3, 2)
    assert choose_crossover([long, even, short]) == 64
    assert choose_crossover([short]) == 16
    assert choose_crossover([long]) == choose_crossover([attention_sample(16, 2, 1), long]) == 0
    noise = attention_sample(32, 1.01, 1)
    assert choose_crossover([short, noise, attention_sample(48, 1, 1.5), long]) == 48
    assert choose_crossover([]) == Tuning().flash_above_mean_tokens == 64


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6))
def test_no_other_crossover_loses_less(medians: list[tuple[int, int]]) -> None:
    samples = [attention_sample(2**place, *pair) for place, pair in enumerate(medians)]

    def loss(crossover: float) -> float:
        taken = [s.flash_ms if s.mean_tokens > crossover else s.efficient_ms for s in samples]
        best = [min(median(s.flash_ms), median(s.efficient_ms)) for s in samples]
        return sum(median(ms) / least for ms, least in zip(taken, best, strict=True))

    found = choose_crossover(samples)
    assert all(loss(found) <= loss(other) + 1e-9 for other in (0, 0.5, *(2**place for place in range(7)), 1000))
