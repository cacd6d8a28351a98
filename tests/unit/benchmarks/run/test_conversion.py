from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mexma_benchmarks.adapters.protocol import Task
from mexma_benchmarks.run.conversion import MARKER, convert, folder_bytes
from mexma_benchmarks.run.process import SubjectError
from mexma_benchmarks.run.subjects import Subject

TASK = Task(
    checkpoint="checkpoint",
    tokenizer="tokenizer",
    pooling="cls",
    is_normalized=False,
    max_tokens=64,
    n_threads=1,
    device="cpu",
    folder="",
    first_text="Hello",
)
SUBJECT = Subject(name="Some library, int8", role="peer", adapter="mexma", converts=True, environment="library==1.0\n")


def test_what_was_converted_is_found_again(tmp_path: Path) -> None:
    first = convert(SUBJECT, TASK, weights_sha256="abc", cache=tmp_path)
    (first.folder / "model.bin").write_bytes(b"12345")
    again = convert(SUBJECT, TASK, weights_sha256="abc", cache=tmp_path)

    assert again == first
    assert first.folder.name.startswith("Some-library-int8-")
    assert folder_bytes(first.folder) == 5


def test_other_weights_settings_or_versions_are_converted_anew(tmp_path: Path) -> None:
    folders = {
        convert(subject, task, weights_sha256=weights, cache=tmp_path).folder
        for subject, task, weights in (
            (SUBJECT, TASK, "abc"),
            (SUBJECT, TASK, "abd"),
            (SUBJECT, dataclasses.replace(TASK, pooling="mean"), "abc"),
            (SUBJECT, dataclasses.replace(TASK, options={"int8": True}), "abc"),
            (dataclasses.replace(SUBJECT, environment="library==1.1\n"), TASK, "abc"),
        )
    }

    assert len(folders) == 5


def test_a_half_made_conversion_is_made_again(tmp_path: Path) -> None:
    folder = convert(SUBJECT, TASK, weights_sha256="abc", cache=tmp_path).folder
    (folder / MARKER).unlink()
    (folder / "half").write_text("")

    assert convert(SUBJECT, TASK, weights_sha256="abc", cache=tmp_path).folder == folder
    assert not (folder / "half").exists()


def test_a_failed_conversion_says_why_and_is_not_taken_for_done(tmp_path: Path) -> None:
    broken = dataclasses.replace(SUBJECT, adapter="none")
    for _ in range(2):
        with pytest.raises(SubjectError, match="No module named"):
            convert(broken, TASK, weights_sha256="abc", cache=tmp_path)
