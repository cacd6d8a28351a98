"""What only TensorRT on a GPU can show, on the tiny stand-in: part of `make gpu-check` where it is installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mexma_export.targets.targets import BuildTarget, TargetOptions, make_target
from mexma_runtime import Encoder
from mexma_runtime.backends import backend_statuses, plan_platform
from mexma_runtime.bundle.plans import plans_folder, read_plan
from mexma_runtime.types import Precision

pytestmark = pytest.mark.gpu

PRECISIONS = (Precision.FP16, Precision.INT8, Precision.FP8)


@pytest.fixture(scope="module", autouse=True)
def tensorrt() -> None:
    """Skips what cannot run here, and says why."""
    for status in backend_statuses():
        if status.name == "tensorrt" and status.problem:
            pytest.skip(status.problem)


@pytest.fixture(scope="module")
def bundle(graphs_for_plans: Path) -> Path:
    """Plans of all precisions, built here."""
    options = TargetOptions(
        target=BuildTarget.TENSORRT, device="cuda", profiles=("latency:8", "throughput:8192"), precisions=PRECISIONS
    )
    make_target(graphs_for_plans, options, progress=lambda what, done, total: None)
    return graphs_for_plans


@pytest.mark.parametrize("graphs", ["at-load", "first-use", "never"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_vectors_are_the_cpus(
    bundle: Path, require_cpu_vectors: Callable[[Encoder], None], precision: Precision, graphs: str
) -> None:
    with Encoder.load(bundle, precision=precision, device="cuda", backend="tensorrt", graphs=graphs) as encoder:
        assert encoder.info.backend == "tensorrt"
        require_cpu_vectors(encoder)


def test_a_plan_is_described_inspected_and_timed(bundle: Path) -> None:
    folder = plans_folder(bundle, plan_platform("cuda"))
    for path in folder.glob("portable.*.json"):
        if path.name.endswith(".layers.json"):
            assert json.loads(path.read_text(encoding="utf-8"))["Layers"]
            continue
        plan = read_plan(path)
        assert (folder / plan.file).stat().st_size == plan.size
        assert (folder / f"{plan.engine}.log").stat().st_size > 0
    assert (folder / "timing.cache").stat().st_size > 0


def test_building_again_replaces_the_plan(bundle: Path) -> None:
    options = TargetOptions(target=BuildTarget.TENSORRT, device="cuda", profiles=("8x512",), engine="portable.fp16")
    make_target(bundle, options, progress=lambda what, done, total: None)
    folder = plans_folder(bundle, plan_platform("cuda"))
    assert len(list(folder.glob("portable.fp16.*.plan"))) == 1
    assert [p.name for p in read_plan(folder / "portable.fp16.json").profiles] == ["8x512"]
