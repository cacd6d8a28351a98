"""What only TensorRT on a GPU can show, on the tiny stand-in: part of `make gpu-check` where it is installed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from mexma_export.bundle.pipeline import export
from mexma_export.bundle.request import ExportRequest
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.parity.figures import compare
from mexma_export.quantize.options import QuantizationOptions
from mexma_export.quantize.recipe import load_recipe
from mexma_export.targets.targets import BuildTarget, TargetOptions, make_target
from mexma_runtime import Encoder
from mexma_runtime.backends import backend_statuses, plan_platform
from mexma_runtime.bundle.plans import plans_folder, read_plan
from mexma_runtime.types import Dialect, Precision, Vectors

pytestmark = pytest.mark.gpu

TEXTS = [f"{'The ferry leaves at noon. ' * (1 + n % 7)}{n}" for n in range(300)]
PRECISIONS = (Precision.FP16, Precision.INT8, Precision.FP8)
MIN_COSINE = {Precision.FP16: 0.9999, Precision.INT8: 0.98, Precision.FP8: 0.98}


@pytest.fixture(scope="module", autouse=True)
def tensorrt() -> None:
    """Skips what cannot run here, and says why."""
    for status in backend_statuses():
        if status.name == "tensorrt" and status.problem:
            pytest.skip(status.problem)


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plans of all precisions, built here."""
    out = tmp_path_factory.mktemp("bundle") / "tensorrt"
    recipe = dataclasses.replace(load_recipe("tensorrt"), smoothquant_alphas=(0.6,), clip_ratios=(1.0,))
    plan = ExportRequest(
        out=out,
        precisions=(Precision.FP32, *PRECISIONS),
        dialects=(Dialect.PORTABLE,),
        quantization=QuantizationOptions(recipes=(recipe,)),
        check_parity=False,
    )
    export(resolve_source(str(tiny_checkpoint)), plan)
    options = TargetOptions(
        target=BuildTarget.TENSORRT, device="cuda", profiles=("latency:8", "throughput:8192"), precisions=PRECISIONS
    )
    make_target(out, options, progress=lambda what, done, total: None)
    return out


@pytest.fixture(scope="module")
def expected(bundle: Path) -> Vectors:
    """onnxruntime's CPU provider."""
    with Encoder.load(bundle, precision="fp32", device="cpu", backend="onnxruntime") as encoder:
        return encoder.encode(TEXTS)


@pytest.mark.parametrize("graphs", ["at-load", "first-use", "never"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_vectors_are_the_cpus(bundle: Path, expected: Vectors, precision: Precision, graphs: str) -> None:
    with Encoder.load(bundle, precision=precision, device="cuda", backend="tensorrt", graphs=graphs) as encoder:
        assert encoder.info.backend == "tensorrt"
        together = encoder.encode(TEXTS)
        alone = np.concatenate([encoder.encode([text]) for text in TEXTS[:20]])
    assert compare(together, expected).cosine_min >= MIN_COSINE[precision]
    assert compare(alone, expected[:20]).cosine_min >= MIN_COSINE[precision]
    assert compare(alone, together[:20]).cosine_min >= MIN_COSINE[precision]


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
