from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.bundle.tuning import FILE, Sample, Tuning, choose_limit, read_tuning, writable_file, write_tuning
from mexma_runtime.errors import BundleError, FileError


@pytest.fixture
def engine(bundle_folder: Path) -> EngineEntry:
    return Bundle.open(bundle_folder).manifest.engines[0]


def sample(n_tokens: int, graph_ms: float, direct_ms: float) -> Sample:
    return Sample(n_tokens=n_tokens, graph_ms=[graph_ms, graph_ms * 9, graph_ms], direct_ms=[direct_ms] * 3)


def test_what_was_measured_is_read_again_for_the_same_gpu_and_graph(tmp_path: Path, engine: EngineEntry) -> None:
    ours = Tuning(graph_up_to_tokens=256, max_batch_tokens=4096, samples=[sample(8, 0.5, 2)])
    theirs = Tuning(graph_up_to_tokens=1024)
    assert read_tuning(tmp_path, "H200", engine) == Tuning()
    write_tuning(tmp_path, "L4", engine, theirs)
    assert write_tuning(tmp_path, "H200", engine, Tuning()) == write_tuning(tmp_path, "H200", engine, ours)
    assert read_tuning(tmp_path, "H200", engine) == ours
    assert read_tuning(tmp_path, "L4", engine) == theirs
    assert read_tuning(tmp_path, "T4", engine) == Tuning()
    assert [path.name for path in (tmp_path / FILE).parent.iterdir()] == [FILE.name]


def test_a_file_that_cannot_be_read_is_not_passed_over(tmp_path: Path, engine: EngineEntry) -> None:
    path = write_tuning(tmp_path, "H200", engine, Tuning())
    for text in ("{", "[]", '{"schema": 2}', '{"schema": 1, "entries": [{}]}'):
        path.write_text(text)
        with pytest.raises(BundleError, match=r"tuning\.json: "):
            read_tuning(tmp_path, "H200", engine)


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
