from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mexma_export.bundle.staging import Staging
from mexma_runtime.bundle.bundle import Bundle, read_manifest
from mexma_runtime.bundle.companions import COMPANIONS, with_companions
from mexma_runtime.bundle.manifest import (
    MANIFEST_NAME,
    SCHEMA,
    FileEntry,
    Manifest,
    ModelEntry,
    PositionScheme,
    Setting,
    TextEntry,
)
from mexma_runtime.errors import BundleError, FileError, UsageError


def manifest_of(tokenizer: FileEntry) -> Manifest:
    """The least that a bundle can be."""
    return Manifest(
        schema=SCHEMA,
        writer="test",
        model=ModelEntry(
            id="m",
            revision=None,
            weights_sha256="0" * 64,
            family="bert",
            n_layers=1,
            hidden_size=4,
            n_heads=1,
            vocab_size=8,
        ),
        pooling=Setting(value="cls", source="test"),
        normalize=Setting(value="false", source="test"),
        text=TextEntry(
            tokenizer=tokenizer.name,
            max_tokens=8,
            max_tokens_source="test",
            lower_case=False,
            padding_id=0,
            position_scheme=PositionScheme.FROM_ZERO,
        ),
        files=[tokenizer],
        engines=[],
    )


def publish(staging: Staging, content: str) -> FileEntry:
    """Make the bundle one file of `content` under its content-addressed name."""
    path = staging.temporary("tokenizer")
    path.write_text(content, encoding="utf-8")
    entry = staging.keep(path, name_of(content))
    staging.publish(manifest_of(entry))
    return entry


def name_of(content: str) -> str:
    return f"tokenizer.{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_published_bundle_opens_and_holds_no_litter(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "bundle"
    with Staging(out) as staging:
        assert staging.previous is None
        entry = publish(staging, "one")
        staging.temporary("left over").write_bytes(b"x")
    assert Bundle.open(out, verify=True).manifest.files == [entry]
    assert entry == FileEntry(name=name_of("one"), sha256=hashlib.sha256(b"one").hexdigest(), size=3)
    assert names_in(out) == {MANIFEST_NAME, entry.name}


def test_a_manifest_that_is_a_link_gives_way_and_what_it_names_stays(tmp_path: Path) -> None:
    store, folder = tmp_path / "blob", tmp_path / "bundle"
    with Staging(folder) as staging:
        publish(staging, "one")
    (folder / MANIFEST_NAME).rename(store)
    (folder / MANIFEST_NAME).symlink_to(store)
    before = store.read_bytes()
    with Staging(folder) as staging:
        publish(staging, "two")
    assert store.read_bytes() == before
    assert names_in(folder) == {MANIFEST_NAME, name_of("two")}
    assert not (folder / MANIFEST_NAME).is_symlink()


def test_files_that_the_new_bundle_does_not_list_are_removed(tmp_path: Path) -> None:
    with Staging(tmp_path) as staging:
        publish(staging, "one")
    with Staging(tmp_path) as staging:
        assert staging.previous is not None
        assert Bundle.open(tmp_path, verify=True).manifest == staging.previous
        publish(staging, "two")
    assert names_in(tmp_path) == {MANIFEST_NAME, name_of("two")}


def test_an_export_that_fails_leaves_the_old_bundle(tmp_path: Path) -> None:
    with Staging(tmp_path) as staging:
        publish(staging, "one")
    before = {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)}

    def fail() -> None:
        with Staging(tmp_path) as staging:
            path = staging.temporary("tokenizer")
            path.write_text("two", encoding="utf-8")
            staging.keep(path, name_of("two"))
            staging.temporary("weights").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)} == before


def test_a_folder_made_for_nothing_is_removed_and_one_that_was_there_stays(tmp_path: Path) -> None:
    with Staging(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    (tmp_path / "empty").mkdir()
    with Staging(tmp_path / "empty"):
        pass
    assert names_in(tmp_path) == {"empty"}


def test_a_folder_that_someone_else_writes_to_meanwhile_stays(tmp_path: Path) -> None:
    out = tmp_path / "new"
    with Staging(out):
        (out / "notes.txt").write_text("mine", encoding="utf-8")
    assert names_in(out) == {"notes.txt"}


def test_a_killed_exports_litter_is_swept_and_nothing_else(tmp_path: Path) -> None:
    with Staging(tmp_path) as staging:
        entry = publish(staging, "one")
    digits = "0123456789abcdef"
    litter = [".new-weights.fp32", f"weights.{digits}.bin", f"model.fused.fp32.{digits}.onnx", name_of("other")]
    others = ["notes.txt", "weights.bin", f"model.{digits}.onnx.bak"]
    for name in [*litter, *others]:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "plan").write_bytes(b"x")
    with Staging(tmp_path):
        expected = {MANIFEST_NAME, entry.name, "local", *others}
        assert names_in(tmp_path) == expected
    assert names_in(tmp_path) == expected
    assert (tmp_path / "local" / "plan").is_file()


def test_a_first_export_that_was_killed_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / ".new-weights.fp32").write_bytes(b"half")
    (tmp_path / name_of("one")).write_bytes(b"one")
    with Staging(tmp_path) as staging:
        assert names_in(tmp_path) == set()
        publish(staging, "one")
    assert Bundle.open(tmp_path, verify=True).manifest.files[0].name == name_of("one")


def test_a_folder_with_something_else_is_refused_and_untouched(tmp_path: Path) -> None:
    for name in ("thesis.tex", ".new-thesis", "local"):
        (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match=r"neither empty nor a bundle \(it holds thesis.tex\): choose another --out"):
        Staging(tmp_path)
    assert names_in(tmp_path) == {"thesis.tex", ".new-thesis", "local"}


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine", encoding="utf-8")
    for out in (path, path / "below"):
        with pytest.raises(FileError, match="cannot be made a folder"):
            Staging(out)
    assert path.read_text(encoding="utf-8") == "mine"


def test_one_export_at_a_time(tmp_path: Path) -> None:
    with Staging(tmp_path):
        with pytest.raises(BundleError, match="another export or build is writing here"):
            Staging(tmp_path)
        with pytest.raises(BundleError, match="another export or build is writing here"):
            Staging(tmp_path)
    with Staging(tmp_path) as staging:
        publish(staging, "one")


def refusing(number: int, *, of_folders: bool = False) -> Callable[..., None]:
    """A system call that fails with `number`; where it is `of_folders`, files are taken."""

    def refuse(descriptor: int, *how: int) -> None:
        if not of_folders or stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL, errno.EBADF])
def test_a_file_system_without_locks_is_written_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(number))
    with Staging(tmp_path) as staging:
        entry = publish(staging, "one")
    assert staging.warnings == (
        f"{tmp_path}: it cannot be locked ({os.strerror(number)}): see to it that no other export writes there "
        "meanwhile",
    )
    assert names_in(tmp_path) == {MANIFEST_NAME, entry.name}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES, errno.ENOSYS])
def test_a_file_system_that_flushes_no_folders_is_written_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", refusing(number, of_folders=True))
    with Staging(tmp_path) as staging:
        publish(staging, "one")
    (told,) = staging.warnings
    assert f"flushes no folders ({os.strerror(number)}): after a power failure" in told
    assert Bundle.open(tmp_path, verify=True).manifest.files


def test_a_file_system_that_flushes_nothing_is_written_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", refusing(errno.EINVAL))
    with Staging(tmp_path) as staging:
        publish(staging, "one")
    assert [re.findall("flushes no (files|folders)", told) for told in staging.warnings] == [["files"], ["folders"]]
    assert Bundle.open(tmp_path, verify=True).manifest.files


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_names_that_are_lost_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "fsync", refusing(number, of_folders=True))

    def export() -> None:
        with Staging(tmp_path) as staging:
            publish(staging, "one")

    with pytest.raises(FileError, match="cannot be flushed to the disk") as caught:
        export()
    assert caught.value.errno == number
    assert names_in(tmp_path) == set()


def test_a_disk_that_does_not_say_its_size_is_tried_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=0, free=0))
    with Staging(tmp_path) as staging:
        staging.require_space(1 << 60)
    assert "does not say how much is free" in staging.warnings[0]


def test_a_full_disk_is_told_with_the_folder_and_leaves_the_old_bundle(tmp_path: Path, small_files: int) -> None:
    with Staging(tmp_path) as staging:
        entry = publish(staging, "one")
    before = names_in(tmp_path)

    def export() -> None:
        with Staging(tmp_path) as staging:
            staging.temporary("weights").write_bytes(bytes(small_files + 1))

    with pytest.raises(FileError, match=r"cannot be written: File too large: .*; nothing was published") as caught:
        export()
    assert (caught.value.path, caught.value.errno) == (tmp_path, errno.EFBIG)
    assert names_in(tmp_path) == before == {MANIFEST_NAME, entry.name}


def test_engines_whose_files_are_gone_are_not_published_again(tmp_path: Path) -> None:
    with Staging(tmp_path) as staging:
        gone = publish(staging, "one")
    before = (tmp_path / MANIFEST_NAME).read_bytes()
    (tmp_path / gone.name).unlink()
    with Staging(tmp_path) as staging:
        assert staging.previous
        with pytest.raises(BundleError, match=f"{gone.name}: is missing: copy the bundle again, or export again"):
            staging.publish(staging.previous)
    assert (tmp_path / MANIFEST_NAME).read_bytes() == before


def test_a_manifest_that_cannot_be_read_is_refused_and_the_folder_let_go(tmp_path: Path) -> None:
    with Staging(tmp_path) as staging:
        publish(staging, "one")
    for text, message in (("{", "not JSON"), (f'{{"schema": {SCHEMA + 1}}}', "this reader knows up to")):
        (tmp_path / MANIFEST_NAME).write_text(text, encoding="utf-8")
        for _ in range(2):
            with pytest.raises(BundleError, match=message):
                Staging(tmp_path)
    assert names_in(tmp_path) == {MANIFEST_NAME, name_of("one")}


def test_too_little_disk_is_said_before_writing(tmp_path: Path) -> None:
    with Staging(tmp_path) as staging:
        staging.require_space(0)
        with pytest.raises(UsageError, match=r"needs 1152921504\.\d+ GB of free disk, .* GB are there: .*Nothing was"):
            staging.require_space(1 << 60)
    assert names_in(tmp_path) == set()


def test_the_same_content_twice_is_one_file(tmp_path: Path) -> None:
    for _ in range(2):
        with Staging(tmp_path) as staging:
            entry = publish(staging, "one")
        assert names_in(tmp_path) == {MANIFEST_NAME, entry.name}
        assert read_manifest(tmp_path) == manifest_of(entry)


def test_a_temporary_name_is_free(tmp_path: Path) -> None:
    with Staging(tmp_path) as staging:
        staging.temporary("x").write_bytes(b"old")
        assert not staging.temporary("x").exists()


def test_companions_are_written_and_renewed_with_the_manifest_and_stay(tmp_path: Path) -> None:
    with Staging(tmp_path) as staging:
        entry = publish(staging, "one")
        staging.publish(with_companions(manifest_of(entry)))
    (tmp_path / "config.json").write_text("rewritten", encoding="utf-8")
    (tmp_path / ".modules.json.0123456789abcdef.part").touch()
    with Staging(tmp_path) as staging:
        staging.publish(with_companions(manifest_of(entry)))
    assert names_in(tmp_path) == {MANIFEST_NAME, entry.name, *COMPANIONS}
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["hidden_size"] == 4


def test_a_file_of_a_companions_name_that_no_bundle_names_is_not_overwritten(tmp_path: Path) -> None:
    with Staging(tmp_path) as staging:
        publish(staging, "one")
    (tmp_path / "modules.json").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match=r"modules\.json: bundle\.json does not name it, so it is yours"):
        Staging(tmp_path)
    assert (tmp_path / "modules.json").read_text(encoding="utf-8") == "mine"
