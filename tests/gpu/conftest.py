"""What the tests of plans share: engines of the tiny stand-in in all precisions, and the CPU's vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mexma_export.bundle.pipeline import export
from mexma_export.bundle.request import ExportRequest
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.parity.figures import compare
from mexma_export.quantize.options import QuantizationOptions
from mexma_export.quantize.recipe import load_recipe
from mexma_runtime import Encoder
from mexma_runtime.types import Dialect, Precision

TEXTS = [f"{'The ferry leaves at noon. ' * (1 + n % 7)}{n}" for n in range(300)]
PRECISIONS = (Precision.FP16, Precision.INT8, Precision.FP8)
MIN_COSINE = {Precision.FP16: 0.9999, Precision.INT8: 0.98, Precision.FP8: 0.98}


@pytest.fixture(scope="module")
def graphs_for_plans(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the graphs; plans are built into it."""
    out = tmp_path_factory.mktemp("bundle") / "tensorrt"
    recipe = dataclasses.replace(load_recipe("tensorrt"), smoothquant_alphas=(0.6,), clip_ratios=(1.0,))
    request = ExportRequest(
        out=out,
        precisions=(Precision.FP32, *PRECISIONS),
        dialects=(Dialect.PORTABLE,),
        quantization=QuantizationOptions(recipes=(recipe,)),
        check_parity=False,
    )
    export(resolve_source(str(tiny_checkpoint)), request)
    return out


@pytest.fixture(scope="session")
def require_cpu_vectors() -> Callable[[Encoder], None]:
    """Fails unless the encoder gives the vectors of onnxruntime's CPU provider, together and alone."""

    def check(encoder: Encoder) -> None:
        with Encoder.load(encoder.info.bundle, precision="fp32", device="cpu", backend="onnxruntime") as on_cpu:
            expected = on_cpu.encode(TEXTS)
        together = encoder.encode(TEXTS)
        alone = np.concatenate([encoder.encode([text]) for text in TEXTS[:20]])
        least = MIN_COSINE[encoder.info.precision]
        assert compare(together, expected).cosine_min >= least
        assert compare(alone, expected[:20]).cosine_min >= least
        assert compare(alone, together[:20]).cosine_min >= least

    return check
