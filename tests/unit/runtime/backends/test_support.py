from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mexma_runtime.backends.support import BACKENDS, device_for, required_versions, runs_by
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.errors import UsageError
from mexma_runtime.types import Dialect, Precision

FP16, FP32 = Precision.FP16, Precision.FP32


@pytest.fixture
def engine(bundle_folder: Path) -> EngineEntry:
    return Bundle.open(bundle_folder).manifest.engines[0]


def like(engine: EngineEntry, dialect: Dialect, precision: Precision, around: Precision = FP32) -> EngineEntry:
    requires = required_versions(dialect, precision, around=around)
    return dataclasses.replace(engine, dialect=dialect, precision=precision, requires=requires)


@pytest.mark.parametrize(
    ("dialect", "precision", "around", "has_scale_groups", "expected"),
    [
        (Dialect.PORTABLE, FP32, FP32, False, {"onnxruntime", "openvino"}),
        (Dialect.PORTABLE, FP16, FP32, False, {"onnxruntime", "tensorrt", "tensorrt-rtx"}),
        (Dialect.FUSED, FP16, FP32, False, {"onnxruntime"}),
        (Dialect.PACKED, FP32, FP32, False, {"onnxruntime"}),
        (Dialect.FUSED, Precision.INT8, FP32, False, {"onnxruntime"}),
        (Dialect.PORTABLE, Precision.INT8, FP32, False, {"onnxruntime", "openvino"}),
        (Dialect.PORTABLE, Precision.INT8, FP32, True, {"openvino"}),
        (Dialect.PORTABLE, Precision.INT8, FP16, False, {"onnxruntime", "tensorrt", "tensorrt-rtx"}),
        (Dialect.PORTABLE, Precision.FP8, FP16, False, {"onnxruntime", "tensorrt", "tensorrt-rtx"}),
        (Dialect.PACKED, Precision.INT8, FP32, False, set()),
        (Dialect.FUSED, Precision.FP8, FP16, False, set()),
    ],
)
def test_an_engine_is_for_those_that_run_it_faithfully(
    dialect: Dialect, precision: Precision, around: Precision, has_scale_groups: bool, expected: set[str]
) -> None:
    assert required_versions(dialect, precision, around=around, has_scale_groups=has_scale_groups).keys() == expected


def test_the_least_version_is_that_of_the_device_that_asks_for_the_least() -> None:
    assert required_versions(Dialect.FUSED, FP16) == {"onnxruntime": "1.20.1"}
    assert required_versions(Dialect.PACKED, FP16) == {"onnxruntime": "1.31"}


def test_a_backend_runs_what_the_table_says_and_the_manifest_too(engine: EngineEntry) -> None:
    def runners(dialect: Dialect, precision: Precision, around: Precision = FP32) -> set[tuple[str, str]]:
        entry = like(engine, dialect, precision, around)
        return {(spec.name, spec.device) for spec in BACKENDS if spec.runs(entry)}

    assert runners(Dialect.PACKED, FP16) == {("onnxruntime", "cuda")}
    assert runners(Dialect.FUSED, Precision.INT8) == {("onnxruntime", "cpu")}
    plans = {("tensorrt", "cuda"), ("tensorrt-rtx", "cuda")}
    assert runners(Dialect.PORTABLE, FP16) == {("onnxruntime", "cpu"), ("onnxruntime", "cuda")} | plans
    assert runners(Dialect.PORTABLE, Precision.FP8, FP16) == {("onnxruntime", "cpu")} | plans
    unlisted = dataclasses.replace(engine, dialect=Dialect.PORTABLE, precision=FP32, requires={"openvino": "1"})
    assert [spec.name for spec in BACKENDS if spec.runs(unlisted)] == ["openvino"]


def test_a_graph_runs_on_the_device_that_is_there_else_on_the_cpu_else_nowhere(engine: EngineEntry) -> None:
    fused, packed = like(engine, Dialect.FUSED, FP16), like(engine, Dialect.PACKED, FP16)
    int8, for_tensorrt = (like(engine, Dialect.PORTABLE, Precision.INT8, around) for around in (FP32, FP16))
    engines = (fused, packed, int8, for_tensorrt)
    assert [device_for(entry, "cpu") for entry in engines] == ["cpu", None, "cpu", "cpu"]
    assert [device_for(entry, "cuda:1") for entry in engines] == ["cuda:1", "cuda:1", "cpu", "cpu"]
    assert [runs_by(entry, "cpu", "onnxruntime") for entry in engines] == [True, False, True, True]
    assert [runs_by(entry, "cuda", "tensorrt") for entry in engines] == [False, False, False, True]
    with pytest.raises(UsageError, match="device: expected 'cpu', 'cuda' or 'cuda:N', got 'tpu'"):
        device_for(fused, "tpu")
