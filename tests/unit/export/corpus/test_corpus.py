from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mexma_export.corpus.corpus import N_CHARACTERS, N_TEXTS, Corpus, gate_corpus, read_corpus, sample_corpus
from mexma_export.corpus.sample import load_sample
from mexma_runtime.errors import FileError, InputError, MexmaError, UsageError


def test_the_gate_reads_little_of_every_language() -> None:
    corpus, sample = gate_corpus(), load_sample()
    languages = {line.text: line.lang for line in sample}
    assert N_TEXTS // 2 < len(corpus.texts) <= N_TEXTS
    assert sum(map(len, corpus.texts)) <= N_CHARACTERS
    assert corpus.languages == tuple(languages[text] for text in corpus.texts)
    assert set(corpus.languages) == {line.lang for line in sample}
    assert max(map(len, corpus.texts)) > 20 * min(map(len, corpus.texts))


def test_the_sample_is_all_of_it() -> None:
    corpus = sample_corpus()
    assert corpus.texts == tuple(line.text for line in load_sample())
    assert corpus.languages == tuple(line.lang for line in load_sample())


def test_a_corpus_is_hashed_as_a_file_of_its_lines() -> None:
    corpus = Corpus(name="x", texts=("one", "zwei \u00e4"))
    assert corpus.sha256 == Corpus(name="y", texts=corpus.texts, languages=("en", "de")).sha256
    assert corpus.sha256 == hashlib.sha256("one\nzwei \u00e4".encode()).hexdigest()


def test_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes("one\r\n\n  \ntwo\u2028still two\x0b\n three\t".encode())
    corpus = read_corpus(path)
    assert corpus == Corpus(name="corpus.txt", texts=("one", "two\u2028still two\x0b", " three\t"))


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (b"", UsageError, ": expected two sentences or more"),
        (b"one sentence\n\n", UsageError, ": expected two sentences or more"),
        (b"two\nlines\xff", InputError, ", line 2: not UTF-8 at byte 6 of the line"),
        (b"PAR1\x15", InputError, ": expected text in UTF-8, got Parquet"),
        (None, FileError, ": cannot be read: No such file"),
    ],
)
def test_a_file_that_is_no_corpus_is_refused(
    tmp_path: Path, content: bytes | None, kind: type[MexmaError], said: str
) -> None:
    path = tmp_path / "corpus.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(kind, match=f"corpus.txt{said}"):
        read_corpus(path)


@pytest.mark.parametrize("name", ["corpus.txt", "corpus.tsv"])
def test_a_carriage_return_within_a_line_ends_none(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"eng\tOne\rtwo.\r\neng\tThree.\n")
    columns = "eng\t" if name == "corpus.txt" else ""
    assert read_corpus(tmp_path / name).texts == (f"{columns}One\rtwo.", f"{columns}Three.")


def test_a_table_says_the_language_of_each_text(tmp_path: Path) -> None:
    path = tmp_path / "corpus.tsv"
    path.write_bytes("de\teins \r\n\nzh\t\u4e8c\n".encode())
    assert read_corpus(path) == Corpus(name="corpus.tsv", texts=("eins ", "\u4e8c"), languages=("de", "zh"))


@pytest.mark.parametrize("line", ["no tab", "de\t", "\ttext", "de\ttext\tmore"])
def test_a_bad_line_of_a_table_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "corpus.tsv"
    path.write_text(f"en\tone\n\n{line}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"corpus\.tsv, line 3: expected language TAB text, got "):
        read_corpus(path)


def test_a_folder_of_languages(tmp_path: Path) -> None:
    (tmp_path / "eng.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    (tmp_path / "deu.txt").write_text("eins\n", encoding="utf-8")
    expected = Corpus(name=tmp_path.name, texts=("eins", "one", "two"), languages=("deu", "eng", "eng"))
    assert read_corpus(tmp_path) == expected


def test_as_many_languages_as_texts() -> None:
    with pytest.raises(UsageError, match="x: 2 texts and 1 languages"):
        Corpus(name="x", texts=("a", "b"), languages=("en",))
