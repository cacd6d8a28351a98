"""The folder of plans: what is published, what is left and what is refused."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mexma_export.targets.tensorrt.plan_folder import PlanFolder
from mexma_runtime.bundle.plans import Plan, read_plan
from mexma_runtime.errors import BundleError, FileError


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[PlanFolder]:
    with PlanFolder(tmp_path) as folder:
        yield folder


def test_a_new_plan_takes_the_place_of_the_old_one(plan: Plan, folder: PlanFolder, tmp_path: Path) -> None:
    other = dataclasses.replace(plan, engine="portable.int8.tensorrt.int8", file="portable.int8.tensorrt.int8.0.plan")
    folder.publish(other, b"int8")
    assert folder.publish(plan, b"old").read_bytes() == b"old"
    new = dataclasses.replace(plan, file="portable.fp16.1111.plan")
    assert folder.publish(new, memoryview(b"new")).read_bytes() == b"new"
    assert read_plan(tmp_path / "portable.fp16.json") == new
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "portable.fp16.1111.plan",
        "portable.fp16.json",
        "portable.int8.tensorrt.int8.0.plan",
        "portable.int8.tensorrt.int8.json",
    ]


def test_a_plan_that_cannot_be_written_leaves_the_old_one(
    plan: Plan, folder: PlanFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.publish(plan, b"old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="cannot be written: No space"):
        folder.publish(dataclasses.replace(plan, file="portable.fp16.1111.plan"), b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_two_builds_do_not_share_a_folder(folder: PlanFolder, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="another export or build is writing here: wait for it to end"):
        PlanFolder(tmp_path)


def test_what_a_killed_build_left_goes_and_what_is_anothers_stays(
    plan: Plan, folder: PlanFolder, tmp_path: Path
) -> None:
    left = tmp_path / ".portable.fp16.0123456789abcdef.plan.76543210.part"
    others = [tmp_path / name for name in ("portable.fp16.mine.0123.plan", "notes.plan", "portable.fp16x.01.plan")]
    for path in (left, *others):
        path.write_bytes(b"x")
    folder.publish(plan, b"plan")
    assert not left.exists()
    assert all(path.exists() for path in others)


def test_links_give_way_and_what_they_point_to_stays(plan: Plan, folder: PlanFolder, tmp_path: Path) -> None:
    """As in a hub's cache, whose files several snapshots share."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    names = (plan.file, "portable.fp16.json", "portable.fp16.log")
    for name in names:
        (blobs / name).write_text("shared")
        (tmp_path / name).symlink_to(blobs / name)
    with folder.log(plan.engine) as say:
        say("INFO", "building")
    folder.publish(plan, b"plan")
    assert (tmp_path / "portable.fp16.log").read_text() == "INFO: building\n"
    assert read_plan(tmp_path / "portable.fp16.json") == plan
    for name in names:
        assert (blobs / name).read_text() == "shared"
        assert not (tmp_path / name).is_symlink()


def test_a_place_that_cannot_be_written_is_told_before_the_build(
    plan: Plan, folder: PlanFolder, tmp_path: Path
) -> None:
    (tmp_path / "portable.fp16.json").mkdir()
    with pytest.raises(FileError, match=r"portable\.fp16\.json"), folder.log(plan.engine):
        pytest.fail("the build has begun")


def test_a_log_on_a_full_disk_hides_no_error(plan: Plan, folder: PlanFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115 - the log closes it

    def compile_and_fail() -> None:
        with folder.log(plan.engine) as say:
            say("INFO", "x" * 100_000)
            raise ValueError("the compiler's own")

    with monkeypatch.context() as patched:
        patched.setattr(folder, "_open_log", lambda path: full)
        with pytest.raises(ValueError, match="the compiler's own"):
            compile_and_fail()
    assert full.closed
