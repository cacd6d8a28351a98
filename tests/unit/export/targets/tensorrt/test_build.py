"""What of building plans needs no TensorRT: which engines, how plans are published, and what is said without it."""

from __future__ import annotations

import dataclasses
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from mexma_export.targets.tensorrt.build import engines_for_tensorrt, publish
from mexma_runtime import Encoder
from mexma_runtime.backends.tensorrt_library import MAX_KEPT, TENSORRT, Messages
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.plans import Plan, read_plan
from mexma_runtime.errors import EngineUnavailableError, FileError, MissingDependencyError
from mexma_runtime.types import Precision

needs_none = pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")


def test_a_new_plan_takes_the_place_of_the_old_one(plan: Plan, tmp_path: Path) -> None:
    other = dataclasses.replace(plan, engine="portable.int8.tensorrt.int8", file="portable.int8.tensorrt.int8.0.plan")
    publish(tmp_path, other, b"int8")
    assert publish(tmp_path, plan, b"old").read_bytes() == b"old"
    new = dataclasses.replace(plan, file="portable.fp16.1111.plan")
    assert publish(tmp_path, new, memoryview(b"new")).read_bytes() == b"new"
    assert read_plan(tmp_path / "portable.fp16.json") == new
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "portable.fp16.1111.plan",
        "portable.fp16.json",
        "portable.int8.tensorrt.int8.0.plan",
        "portable.int8.tensorrt.int8.json",
    ]


def test_a_plan_that_cannot_be_written_leaves_the_old_one(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, plan, b"old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="cannot be written: No space"):
        publish(tmp_path, dataclasses.replace(plan, file="portable.fp16.1111.plan"), b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_engines_for_tensorrt_are_found_by_precision_or_name(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    (entry,) = engines_for_tensorrt(bundle, precisions=())
    assert entry.name == "portable.fp16"
    assert engines_for_tensorrt(bundle, precisions=[Precision.FP16], engine="portable.fp16") == [entry]
    for wanted in ({"precisions": [Precision.INT8]}, {"precisions": (), "engine": "fused.fp16"}):
        with pytest.raises(EngineUnavailableError, match=r"those it has: portable\.fp16\. Add some"):
            engines_for_tensorrt(bundle, **wanted)


@needs_none
def test_without_tensorrt_an_encoder_says_what_to_install(tiny_bundle: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'mexma-runtime\[tensorrt\]'"):
        Encoder.load(tiny_bundle, device="cuda", backend="tensorrt")


def test_the_last_errors_are_told_once() -> None:
    said: list[str] = []
    messages = Messages(TENSORRT, lambda severity, text: said.append(severity))
    for number in range(MAX_KEPT + 5):
        messages.add("ERROR", f"e{number}")
    messages.add("INFO", "building")
    told = messages.errors()
    assert told.startswith("e5; ")
    assert told.endswith(f"e{MAX_KEPT + 4}")
    assert "building" not in told
    assert said.count("INFO") == 1
    assert messages.errors() == "TensorRT gives no reason"
