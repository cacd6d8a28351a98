"""What only TensorRT for RTX on a GPU can show, on the tiny stand-in: part of `make gpu-check` where it works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mexma_export.targets.targets import BuildTarget, TargetOptions, make_target
from mexma_runtime import Encoder
from mexma_runtime.backends import backend_statuses
from mexma_runtime.backends.gpu.cuda_checks import all_gpus
from mexma_runtime.backends.gpu.plans.tensorrt_rtx import precision_problem
from mexma_runtime.errors import EngineUnavailableError
from mexma_runtime.types import Precision

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def tensorrt_rtx() -> None:
    """Skips what cannot run here, and says why."""
    for status in backend_statuses():
        if status.name == "tensorrt-rtx" and status.problem:
            pytest.skip(status.problem)


@pytest.fixture(scope="module")
def capability() -> str:
    """Of the first GPU."""
    return all_gpus()[0].capability_text


@pytest.fixture(scope="module")
def bundle(graphs_for_plans: Path, capability: str) -> Path:
    """Plans for it."""
    options = TargetOptions(
        target=BuildTarget.TENSORRT_RTX, capabilities=(capability,), profiles=("latency:8", "throughput:8192")
    )
    make_target(graphs_for_plans, options, progress=lambda what, done, total: None)
    return graphs_for_plans


@pytest.mark.parametrize("graphs", ["at-load", "first-use", "never"])
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8, Precision.FP8])
def test_vectors_are_the_cpus(
    bundle: Path, capability: str, require_cpu_vectors: Callable[[Encoder], None], precision: Precision, graphs: str
) -> None:
    if problem := precision_problem(precision, capability):
        with pytest.raises(EngineUnavailableError, match=problem):
            Encoder.load(bundle, precision=precision, device="cuda", backend="tensorrt-rtx", graphs=graphs)
        return
    with Encoder.load(bundle, precision=precision, device="cuda", backend="tensorrt-rtx", graphs=graphs) as encoder:
        assert encoder.info.backend == "tensorrt-rtx"
        assert (encoder.info.n_graphs > 0) == (graphs != "never")
        require_cpu_vectors(encoder)


def test_compiled_kernels_are_kept(bundle: Path) -> None:
    Encoder.load(bundle, precision="fp16", device="cuda", backend="tensorrt-rtx").close()
    (kept,) = (bundle / "local" / "tensorrt-rtx").glob("*/*.cache")
    size = kept.stat().st_size
    assert size > 0
    Encoder.load(bundle, precision="fp16", device="cuda", backend="tensorrt-rtx").close()
    assert kept.stat().st_size == size
