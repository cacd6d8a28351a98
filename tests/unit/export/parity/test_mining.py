from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from mexma_export.parity.mining import compare_mining, measure_mining, read_mining
from mexma_runtime.errors import MissingDependencyError, UsageError
from mexma_runtime.types import Vectors


def write(folder: Path, files: Mapping[str, Sequence[str]]) -> Path:
    for name, lines in files.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def lines(language: str, n: int = 6) -> list[str]:
    return [f"{language} {i}" for i in range(n)]


@pytest.fixture
def languages(tmp_path: Path) -> Path:
    names = ("deu", "eng", "zho-CN")
    return write(tmp_path, {f"{name}.txt": lines(name) for name in names} | {"README.md": ["about"]})


def test_every_language_against_the_pivot(languages: Path) -> None:
    corpus = read_mining(languages)
    assert [bitext.name for bitext in corpus.bitexts] == ["deu-eng", "zho-CN-eng"]
    assert [bitext.source for bitext in corpus.bitexts] == [tuple(lines("deu")), tuple(lines("zho-CN"))]
    assert [bitext.target for bitext in corpus.bitexts] == [tuple(lines("eng"))] * 2
    assert corpus.n_texts == 18  # the pivot once
    assert [bitext.name for bitext in read_mining(languages, pivot="deu").bitexts] == ["eng-deu", "zho-CN-deu"]


def test_pairs_by_name(tmp_path: Path) -> None:
    names = ("x.deu-eng.deu", "x.deu-eng.eng", "x.eng-fra.eng", "x.eng-fra.fra")
    corpus = read_mining(write(tmp_path, {name: lines(name) for name in names}))
    assert {b.name: (b.source[0], b.target[0]) for b in corpus.bitexts} == {
        "deu-eng": ("x.deu-eng.deu 0", "x.deu-eng.eng 0"),
        "eng-fra": ("x.eng-fra.eng 0", "x.eng-fra.fra 0"),
    }
    write(tmp_path, {name: lines(name) for name in ("y.deu-eng.deu", "y.deu-eng.eng")})
    assert [b.name for b in read_mining(tmp_path).bitexts] == ["x.deu-eng", "eng-fra", "y.deu-eng"]


def test_a_carriage_return_within_a_line_ends_none(languages: Path) -> None:
    (languages / "deu.txt").write_bytes("\n".join(["a\rb", *lines("deu", 5)]).encode())
    assert read_mining(languages).bitexts[0].source == ("a\rb", *lines("deu", 5))


def test_first_lines_alone(languages: Path) -> None:
    corpus = read_mining(languages, n_lines=2)
    assert [bitext.source for bitext in corpus.bitexts] == [tuple(lines("deu", 2)), tuple(lines("zho-CN", 2))]
    assert corpus.sha256 != read_mining(languages).sha256
    with pytest.raises(UsageError, match="--mining-lines: expected 2 or more, got 1"):
        read_mining(languages, n_lines=1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no text files"),
        ({"deu.txt": lines("deu"), "fra.txt": lines("fra")}, r"expected eng\.txt.* it has deu, fra \(--mining-pivot"),
        ({"eng.txt": lines("eng")}, "and another"),
        ({"eng.txt": lines("eng"), "deu.txt": lines("deu", 5)}, r"deu\.txt has 5 lines and eng\.txt 6"),
        ({"eng.txt": lines("eng"), "deu.txt": ["a", " ", "c", "", "e", "f"]}, r"deu\.txt, line 2: blank, one of 2"),
        ({"eng.txt": ["a"], "deu.txt": ["b"]}, "two lines or more, got 1"),
        ({"x.deu-eng.deu": lines("deu")}, r"its partner x\.deu-eng\.eng is not there"),
    ],
)
def test_a_folder_that_is_not_parallel_is_refused(
    tmp_path: Path, files: Mapping[str, Sequence[str]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read_mining(write(tmp_path, files))


def test_a_pivot_is_for_files_of_one_language(tmp_path: Path) -> None:
    write(tmp_path, {name: lines(name) for name in ("x.deu-eng.deu", "x.deu-eng.eng")})
    with pytest.raises(UsageError, match=r"--mining-pivot eng: the files of .* are pairs"):
        read_mining(tmp_path, pivot="eng")
    with pytest.raises(UsageError, match="expected a folder"):
        read_mining(tmp_path / "x.deu-eng.deu")


def test_a_missing_faiss_is_said_before_the_work(languages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependencyError, match="faiss-cpu"):
        read_mining(languages)


def test_errors_become_rates_beside_the_reference(languages: Path) -> None:
    """One vector a line number, whatever the language: no errors, until German lines are rotated or swapped."""
    corpus = read_mining(languages)
    meanings = np.random.default_rng(0).standard_normal((6, 16)).astype(np.float32)
    calls: list[str] = []

    def embed(german: Sequence[int], texts: Sequence[str]) -> Vectors:
        calls.append(texts[0].split()[0])
        order = german if texts[0].startswith("deu") else range(6)
        return meanings[[order[int(text.split()[1])] for text in texts]]

    reference = measure_mining(corpus, lambda texts: embed([1, 0, 2, 3, 4, 5], texts))
    assert calls == ["eng", "deu", "zho-CN"]  # each file once
    engine = measure_mining(corpus, lambda texts: embed([1, 2, 3, 4, 5, 0], texts))
    assert (reference, engine) == ([2, 0], [6, 0])
    figures = compare_mining(corpus, engine, reference)
    assert [(row.name, row.n_sentences) for row in figures.rows] == [("deu-eng", 6), ("zho-CN-eng", 6)]
    assert figures.rows[0].engine_error_rate == 1
    assert figures.rows[0].difference == pytest.approx(4 / 6)
    mean = figures.mean
    assert (mean.n_sentences, mean.engine_error_rate) == (12, 0.5)
    assert mean.reference_error_rate == pytest.approx(1 / 6)
    assert mean.difference == pytest.approx(1 / 3)
