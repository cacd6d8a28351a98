"""What tests from checkpoint to vectors share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mexma_export.bundle.pipeline import export
from mexma_export.bundle.request import ExportRequest
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.quantize.calibration import shipped_corpus
from mexma_export.quantize.options import QuantizationOptions
from mexma_export.quantize.recipe import load_recipe
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.types import Dialect, Precision

FOR_TENSORRT = (Precision.FP16, Precision.INT8, Precision.FP8)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibration text: a third of the English part of what ships, which every model here reads."""
    corpus = shipped_corpus()
    assert corpus.languages
    path = tmp_path_factory.mktemp("calibration") / "english.txt"
    lines = [text for text, language in zip(corpus.texts, corpus.languages, strict=True) if language == "en"]
    path.write_text("\n".join(lines[::3]), encoding="utf-8")
    return path


def export_for_tensorrt(
    checkpoint: Path, out: Path, *precisions: Precision, texts: Path | None = None, check: bool = False
) -> Bundle:
    recipe = dataclasses.replace(load_recipe("tensorrt"), smoothquant_alphas=(0.6, 0.8), clip_ratios=(1.0, 0.8, 0.6))
    request = ExportRequest(
        out=out,
        precisions=precisions,
        dialects=(Dialect.PORTABLE,),
        quantization=QuantizationOptions(recipes=(recipe,), calibration=texts),
        check_parity=check,
    )
    export(resolve_source(str(checkpoint)), request)
    return Bundle.open(out)


@pytest.fixture(scope="session")
def xlmr_for_tensorrt(tiny_checkpoint: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """All that TensorRT takes, of an XLM-R with CLS pooling."""
    return export_for_tensorrt(tiny_checkpoint, tmp_path_factory.mktemp("xlmr") / "bundle", *FOR_TENSORRT, texts=texts)


@pytest.fixture(scope="session")
def bert_for_tensorrt(tiny_bert_checkpoint: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same of a BERT with mean pooling."""
    folder = tmp_path_factory.mktemp("bert") / "bundle"
    return export_for_tensorrt(tiny_bert_checkpoint, folder, *FOR_TENSORRT, texts=texts)


@pytest.fixture(params=["xlmr_for_tensorrt", "bert_for_tensorrt"])
def tensorrt_bundle(request: pytest.FixtureRequest) -> Bundle:
    """Both poolings and both position schemes."""
    found: Bundle = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def minilm_for_tensorrt(minilm_folder: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same of trained weights, judged, and fp32 to compare with."""
    folder = tmp_path_factory.mktemp("tensorrt") / "minilm"
    return export_for_tensorrt(minilm_folder, folder, Precision.FP32, *FOR_TENSORRT, texts=texts, check=True)
