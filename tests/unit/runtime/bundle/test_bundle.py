from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mexma_runtime import Encoder
from mexma_runtime.bundle.bundle import Bundle, read_manifest
from mexma_runtime.bundle.manifest import MANIFEST_NAME
from mexma_runtime.errors import BundleError

FILES = [MANIFEST_NAME, "model.fused.fp32.onnx", "model.portable.fp32.onnx", "tokenizer.json", "weights.bin"]
MakeBundle = Callable[..., Path]


def flip_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_the_parametrized_files_are_all_there_are(bundle_folder: Path) -> None:
    assert sorted(path.name for path in bundle_folder.iterdir()) == FILES


def test_an_undamaged_bundle_opens_and_says_how_far_it_is(bundle_folder: Path) -> None:
    steps: list[tuple[int, int]] = []

    bundle = Bundle.open(bundle_folder, verify=True, progress=lambda done, total: steps.append((done, total)))

    assert bundle.path("tokenizer.json") == bundle_folder / "tokenizer.json"
    total = sum((bundle_folder / name).stat().st_size for name in FILES[1:])
    assert steps[-1] == (total, total)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found(make_bundle: MakeBundle, name: str, where: float) -> None:
    folder = make_bundle()
    flip_bit(folder / name, int(where * (folder / name).stat().st_size))

    with pytest.raises(BundleError) as caught:
        Encoder.load(folder, verify=True)

    assert caught.value.path == folder / name


@pytest.mark.parametrize("name", FILES[:-1])
def test_all_but_the_weights_are_hashed_without_asking(make_bundle: MakeBundle, name: str) -> None:
    folder = make_bundle()
    flip_bit(folder / name, 10)

    with pytest.raises(BundleError):
        Encoder.load(folder)


def test_the_whole_manifest_counts(make_bundle: MakeBundle) -> None:
    path = make_bundle() / MANIFEST_NAME
    whole = path.read_bytes()
    unnoticed = []
    for position in range(0, len(whole), 7):
        flip_bit(path, position)
        try:
            read_manifest(path.parent)
        except BundleError:
            pass
        else:
            unnoticed.append(whole[position : position + 1])
        path.write_bytes(whole)

    assert not unnoticed


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused(make_bundle: MakeBundle, name: str) -> None:
    folder = make_bundle()
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])

    with pytest.raises(BundleError) as caught:
        Encoder.load(folder)

    assert caught.value.path == folder / name


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(make_bundle: MakeBundle, name: str) -> None:
    folder = make_bundle()
    (folder / name).unlink()

    with pytest.raises(BundleError, match=r"holds no bundle\.json" if name == MANIFEST_NAME else "is missing"):
        Encoder.load(folder)


def test_another_file_of_the_same_size_is_refused(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    path = folder / "tokenizer.json"
    path.write_bytes(bytes(path.stat().st_size))

    with pytest.raises(BundleError, match=r"expected sha256 [0-9a-f]{64}, got [0-9a-f]{64}"):
        Encoder.load(folder)


def test_a_file_that_cannot_be_read_is_refused(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    path = folder / "tokenizer.json"
    path.unlink()
    path.mkdir()
    manifest = Bundle.open(make_bundle()).manifest
    files = [dataclasses.replace(f, size=path.stat().st_size) if f.name == path.name else f for f in manifest.files]
    text = dataclasses.replace(manifest, files=files).to_json()
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=r"tokenizer\.json: is no file"):
        Bundle.open(folder)


def test_links_to_nothing_and_what_is_no_file_are_told(make_bundle: MakeBundle) -> None:
    for name in ("tokenizer.json", MANIFEST_NAME):
        path = make_bundle() / name
        path.unlink()
        path.symlink_to("elsewhere")
        with pytest.raises(BundleError, match=f"{name}: is a link to elsewhere, which is not there"):
            Bundle.open(path.parent)
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(BundleError, match=f"{name}: is no file"):
            Bundle.open(path.parent)


def test_a_bundle_stays_where_it_is(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_bundle()
    monkeypatch.chdir(folder.parent)
    bundle = Bundle.open(folder.name)
    monkeypatch.chdir("/")
    assert bundle.path("tokenizer.json").is_file()


def test_a_folder_that_is_no_bundle_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"the folder does not exist; `mexma export SOURCE --out "):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"holds no bundle\.json"):
        Bundle.open(tmp_path)


def test_a_manifest_that_is_not_utf8_is_refused(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    (folder / MANIFEST_NAME).write_bytes(b"\xff\xfe{}")

    with pytest.raises(BundleError, match="not UTF-8"):
        Bundle.open(folder)


def test_a_moved_bundle_works(make_bundle: MakeBundle, tmp_path: Path) -> None:
    moved = Path(shutil.move(make_bundle(), tmp_path / "elsewhere"))

    with Encoder.load(moved, verify=True) as encoder:
        assert encoder.info.bundle == str(moved)
        assert encoder.encode("a").shape == (8,)
