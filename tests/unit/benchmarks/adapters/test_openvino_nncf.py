"""Runs where openvino, and nncf for int8, are installed beside the project, which needs no peer for its own tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mexma_benchmarks.adapters.openvino_nncf import open_model, prepare
from mexma_benchmarks.adapters.protocol import Task, Vectors
from mexma_export.parity.reference import load_reference
from mexma_runtime.types import Pooling

pytest.importorskip("openvino")

TEXTS = ["one", "", "a text that is cut " * 20, *(f"sentence {'of words ' * (i % 7)}{i}" for i in range(40))]


@pytest.fixture(params=["tiny_checkpoint", "tiny_bert_checkpoint"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def task_of(checkpoint: Path, folder: Path, **options: Any) -> Task:
    return Task(
        checkpoint=str(checkpoint),
        tokenizer=str(checkpoint),
        pooling="mean",
        is_normalized=True,
        max_tokens=24,
        n_threads=1,
        device="cpu",
        folder=str(folder),
        first_text="one",
        options=options,
    )


def cosines(vectors: Vectors, checkpoint: Path) -> Vectors:
    with load_reference(checkpoint, pooling=Pooling.MEAN, normalize=True, max_tokens=24) as reference:
        products: Vectors = (vectors * reference.encode(TEXTS)).sum(axis=1)
        return products


def test_fp32_gives_the_vectors_of_the_reference(checkpoint: Path, tmp_path: Path) -> None:
    task = task_of(checkpoint, tmp_path, int8=False)
    prepare(task)
    assert cosines(open_model(task).encode(TEXTS), checkpoint).min() > 1 - 1e-6


def test_int8_is_near_the_reference_and_keeps_nothing_else(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    calibration = tmp_path / "calibration.txt"
    calibration.write_text("\n".join(TEXTS))
    (folder := tmp_path / "converted").mkdir()
    task = task_of(checkpoint, folder, calibration=str(calibration))

    prepare(task)

    model = open_model(task)
    assert 0.98 < cosines(model.encode(TEXTS), checkpoint).min() < 1 - 1e-6
    assert sorted(path.name for path in folder.iterdir()) == ["int8.bin", "int8.xml"]
    assert set(model.versions) == {"openvino", "nncf"}


def test_int8_asks_for_calibration_texts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="calibration: int8 needs a text file"):
        prepare(task_of(tiny_checkpoint, tmp_path))


def test_another_device_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    task = task_of(tiny_checkpoint, tmp_path, int8=False)
    with pytest.raises(ValueError, match="expected cpu, got cuda"):
        open_model(Task(**{**vars(task), "device": "cuda"}))
