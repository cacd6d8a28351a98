from __future__ import annotations

from pathlib import Path

import pytest

from mexma_export.corpus.text_files import language_files
from mexma_runtime.errors import UsageError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("x\n", encoding="utf-8")


def test_languages_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "zho-CN.txt", "eng.txt", "README.md", "LICENSE", ".hidden", "notes.md")
    (tmp_path / "sub").mkdir()
    found = [(file.path.name, file.language, file.pair) for file in language_files(tmp_path)]
    assert found == [("eng.txt", "eng", None), ("zho-CN.txt", "zho-CN", None)]


def test_languages_by_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "tatoeba.ara-eng.ara", "tatoeba.ara-eng.eng", "a.b.zho-CN-eng.zho-CN", "a.b.zho-CN-eng.eng")
    found = {file.path.name: (file.language, file.pair) for file in language_files(tmp_path)}
    assert found == {
        "tatoeba.ara-eng.ara": ("ara", ("ara", "eng")),
        "tatoeba.ara-eng.eng": ("eng", ("ara", "eng")),
        "a.b.zho-CN-eng.zho-CN": ("zho-CN", ("zho-CN", "eng")),
        "a.b.zho-CN-eng.eng": ("eng", ("zho-CN", "eng")),
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "no text files"),
        (("README.md",), "no text files"),
        (("eng.txt", "x.a-b.a"), "keep them apart"),
        (("eng.txt", "data.csv"), r"data\.csv: its name says no language"),
        (("x.ara-eng.deu",), r"x\.ara-eng\.deu: its name says no language"),
        (("words",), "its name says no language"),
    ],
)
def test_a_folder_that_cannot_be_understood_is_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    touch(tmp_path, *names)
    with pytest.raises(UsageError, match=message):
        language_files(tmp_path)


def test_a_language_does_not_vanish(tmp_path: Path) -> None:
    (tmp_path / "eng.txt").touch()
    (tmp_path / "notes").mkdir()
    assert len(language_files(tmp_path)) == 1
    (tmp_path / "fra.txt").symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"fra\.txt: expected a text file, got a link to nothing"):
        language_files(tmp_path)
