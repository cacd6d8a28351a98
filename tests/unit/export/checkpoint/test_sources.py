"""What needs the hub's own client and its cache is in tests/integration/test_hub_layout.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mexma_export.checkpoint.sources import Source, resolve_source
from mexma_runtime.errors import SourceError, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("{}", encoding="utf-8")
    return folder


def test_a_folder_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "my-model", "tokenizer.json")
    expected = Source(folder=folder, model_id="my-model", revision=None, tokenizer=folder / "tokenizer.json")
    assert resolve_source(str(folder)) == expected
    monkeypatch.chdir(tmp_path)
    assert resolve_source("my-model") == expected
    monkeypatch.chdir(folder)
    assert resolve_source(".") == expected


@pytest.mark.parametrize(
    ("name", "model_id"), [("models--facebook--MEXMA", "facebook/MEXMA"), ("models--bert-base", "bert-base")]
)
def test_a_folder_of_the_hubs_cache_is_called_by_its_id(tmp_path: Path, name: str, model_id: str) -> None:
    folder = make(tmp_path / name / "snapshots" / COMMIT, "tokenizer.json")
    source = resolve_source(str(folder))
    assert (source.model_id, source.revision) == (model_id, COMMIT)
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert resolve_source(str(link)) == source


@pytest.mark.parametrize("path", [f"models--a--b/snapshots/{COMMIT}/onnx", "models--a--b/snapshots/main", "snapshots"])
def test_other_folders_are_not(tmp_path: Path, path: str) -> None:
    folder = make(tmp_path / path, "tokenizer.json")
    source = resolve_source(str(folder))
    assert (source.model_id, source.revision) == (folder.name, None)


def test_a_repository_of_the_hubs_cache_names_its_commits(tmp_path: Path) -> None:
    make(tmp_path / "models--a--b" / "snapshots" / COMMIT, "config.json")
    with pytest.raises(SourceError, match=rf"name .*/models--a--b/snapshots/COMMIT \(there: {COMMIT}\)"):
        resolve_source(str(tmp_path / "models--a--b"))


def test_the_tokenizer_may_lie_elsewhere(tmp_path: Path) -> None:
    model = make(tmp_path / "model", "config.json")
    other = make(tmp_path / "other", "tokenizer.json")
    for place in (other, other / "tokenizer.json"):
        assert resolve_source(str(model), tokenizer=str(place)).tokenizer == other / "tokenizer.json"
    (model / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert resolve_source(str(model)).tokenizer == model / "tokenizer.json"
    assert resolve_source(str(model), tokenizer=str(other)).tokenizer == other / "tokenizer.json"


def test_a_checkpoint_without_tokenizer_asks_for_one(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"model: no tokenizer.json: .* --tokenizer"):
        resolve_source(str(make(tmp_path / "model", "config.json")))


def test_a_place_without_tokenizer_is_refused(tmp_path: Path) -> None:
    model = make(tmp_path / "model", "config.json", "other.json")
    for place in (model, model / "other.json"):  # the reference would not find a file of another name
        with pytest.raises(SourceError, match=r"expected a file called tokenizer.json, or a folder or a hub id"):
            resolve_source(str(model), tokenizer=str(place))


@pytest.mark.parametrize("source", ["/no/such/folder", "no/such/folder", "a b", "a--b/c", "x" * 100])
def test_what_is_neither_folder_nor_id_is_refused_without_asking_the_hub(source: str, tmp_path: Path) -> None:
    model = str(make(tmp_path / "model", "config.json"))
    for asked, tokenizer in ((source, None), (model, source)):
        with pytest.raises(SourceError, match="no such file or folder, and not an id on the hub"):
            resolve_source(asked, tokenizer=tokenizer)


def test_a_revision_belongs_to_the_hub(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", "tokenizer.json")
    for source in (str(folder), "standin:tiny"):
        with pytest.raises(UsageError, match="--revision main belongs to a checkpoint on the hub"):
            resolve_source(source, revision="main")


def test_a_stand_in_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEXMA_CACHE", str(tmp_path))
    calls: list[tuple[int, int]] = []
    source = resolve_source("standin:tiny", progress=lambda done, total: calls.append((done, total)))
    assert (source.model_id, source.revision, source.notes) == ("standin:tiny", None, ())
    assert source.folder.is_relative_to(tmp_path)
    assert source.tokenizer.is_file()
    assert calls
    shutil.copyfile(source.tokenizer, tmp_path / "tokenizer.json")
    calls.clear()
    assert resolve_source("standin:tiny", progress=lambda done, total: calls.append((done, total))) == source
    assert calls == []
    assert resolve_source("standin:tiny", tokenizer=str(tmp_path)).tokenizer == tmp_path / "tokenizer.json"


def test_an_unknown_stand_in_is_refused() -> None:
    with pytest.raises(UsageError, match="'huge': there are mexma, "):
        resolve_source("standin:huge")


def test_a_bundle_is_no_checkpoint(tiny_bundle: Path) -> None:
    with pytest.raises(SourceError, match="a bundle, which an export makes: name the checkpoint"):
        resolve_source(str(tiny_bundle))
