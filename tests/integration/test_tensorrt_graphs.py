"""What TensorRT is given: the graphs themselves, on onnxruntime's CPU provider, and against its parser's list."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from mexma_export.bundle.pipeline import export
from mexma_export.bundle.request import ExportRequest
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.corpus.sample import load_sample
from mexma_export.parity.figures import compare
from mexma_export.quantize.options import FP8_MIN_COSINE, QuantizationOptions
from mexma_export.quantize.recipe import load_recipe
from mexma_runtime import Encoder
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry, ProductMode
from mexma_runtime.types import QUANTIZED, Dialect, Precision

TABLE = json.loads((Path(__file__).parents[1] / "golden" / "tensorrt_operators.json").read_text(encoding="utf-8"))
TYPES: dict[int, str] = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.INT8: "INT8",
    TensorProto.FLOAT8E4M3FN: "FP8",
    TensorProto.BOOL: "BOOL",
}
PRECISIONS = (Precision.FP16, Precision.INT8, Precision.FP8)
ENGLISH = [line.text for line in load_sample() if line.lang == "en"]
"""Calibration never saw them."""


def export_for_tensorrt(
    checkpoint: Path, out: Path, *precisions: Precision, texts: Path | None = None, check: bool = False
) -> Path:
    recipe = dataclasses.replace(load_recipe("tensorrt"), smoothquant_alphas=(0.6, 0.8), clip_ratios=(1.0, 0.8, 0.6))
    options = QuantizationOptions(recipes=(recipe,), calibration=texts)
    plan = ExportRequest(
        out=out,
        precisions=precisions,
        dialects=(Dialect.PORTABLE,),
        quantization=None if QUANTIZED.isdisjoint(precisions) else options,
        check_parity=check,
    )
    export(resolve_source(str(checkpoint)), plan)
    return out


@pytest.fixture(scope="module", params=["tiny_checkpoint", "tiny_bert_checkpoint"])
def bundle(request: pytest.FixtureRequest, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Both poolings and both position schemes."""
    folder = tmp_path_factory.mktemp("tensorrt") / "bundle"
    return Bundle.open(export_for_tensorrt(request.getfixturevalue(request.param), folder, *PRECISIONS, texts=texts))


def entry_of(bundle: Bundle, precision: Precision) -> EngineEntry:
    return next(entry for entry in bundle.manifest.engines if entry.precision is precision)


def graph_of(bundle: Bundle, precision: Precision) -> tuple[onnx.ModelProto, dict[str, int]]:
    """The graph with its weights, and the type of every value in it."""
    model = onnx.shape_inference.infer_shapes(
        onnx.load(bundle.path(entry_of(bundle, precision).file)), strict_mode=True
    )
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        kinds[value.name] = value.type.tensor_type.elem_type
    return model, kinds


each = pytest.mark.parametrize("precision", PRECISIONS)


@each
def test_operators_types_and_opset_are_in_the_parsers_list(bundle: Bundle, precision: Precision) -> None:
    model, kinds = graph_of(bundle, precision)
    (opset,) = model.opset_import
    assert opset.domain == ""
    for least, most in TABLE["opsets"].values():
        assert least <= opset.version <= most
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        supported = TABLE["operators"][node.op_type]
        value = node.input[1] if node.op_type == "Where" else node.input[0]
        assert TYPES[kinds[value]] in supported, (node.name, TYPES[kinds[value]])
        for index in TABLE["build_time_constants"].get(node.op_type, []):
            assert node.input[index] in constants, node.name


@each
def test_zero_points_are_zero_and_scales_positive(bundle: Bundle, precision: Precision) -> None:
    model, _ = graph_of(bundle, precision)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    quantizing = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert bool(quantizing) == (precision in QUANTIZED)
    for node in quantizing:
        assert np.all(arrays[node.input[1]] > 0), node.name
        assert all(not np.any(arrays[name].astype(np.float32)) for name in node.input[2:]), node.name


@pytest.mark.parametrize("precision", sorted(QUANTIZED))
def test_only_products_read_what_was_quantized_and_all_else_is_fp16(bundle: Bundle, precision: Precision) -> None:
    model, kinds = graph_of(bundle, precision)
    eight_bits = TensorProto.INT8 if precision is Precision.INT8 else TensorProto.FLOAT8E4M3FN
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    n_products = 0
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert kinds[node.output[0]] == eight_bits
            assert readers[node.output[0]] == {"DequantizeLinear"}
        if node.op_type == "DequantizeLinear":
            assert kinds[node.input[0]] == eight_bits
            assert readers[node.output[0]] == {"MatMul"}
        if node.op_type == "MatMul" and node.input[1].endswith(".weight.float"):
            n_products += 1
        is_pooling = str(node.name).startswith("pooling.")  # which is in fp32
        if node.op_type in ("Add", "Gelu", "LayerNormalization", "MatMul", "Softmax") and not is_pooling:
            assert kinds[node.output[0]] == TensorProto.FLOAT16, node.name
    quantized = [p for p in quantization_of(bundle, precision) if p.mode is not ProductMode.FLOAT]
    assert n_products == sum(3 if p.name.endswith("qkv") else 1 for p in quantized)
    assert {p.mode for p in quantized} == {ProductMode.STATIC}


def quantization_of(bundle: Bundle, precision: Precision) -> list:  # type: ignore[type-arg]
    quantization = entry_of(bundle, precision).quantization
    assert quantization
    return quantization.products


@each
def test_engines_say_what_runs_them(bundle: Bundle, precision: Precision) -> None:
    entry = entry_of(bundle, precision)
    assert {"tensorrt", "onnxruntime"} == set(entry.requires)
    suffix = {Precision.FP16: "", Precision.INT8: ".tensorrt.int8", Precision.FP8: ".tensorrt.e4m3"}[precision]
    assert entry.name == f"portable.{precision}{suffix}"


def test_fidelity_on_minilm(minilm_folder: Path, tmp_path: Path) -> None:
    """The bars of int8, in mean pooling, for both; fp8 leaves in fp16 what it takes."""
    out = tmp_path / "minilm"
    export_for_tensorrt(minilm_folder, out, Precision.FP32, *PRECISIONS, check=True)
    with Encoder.load(out, precision="fp32", dialect="portable") as encoder:
        expected = encoder.encode(ENGLISH)
    shares = {}
    for entry in Bundle.open(out).manifest.engines:
        if entry.precision is Precision.FP32:
            continue
        with Encoder.load(out, engine=entry.name, backend="onnxruntime") as encoder:
            figures = compare(encoder.encode(ENGLISH), expected)
        if entry.precision is Precision.FP16:
            assert figures.cosine_min >= 0.9999
            continue
        assert figures.cosine_mean >= 0.999, entry.name
        assert figures.cosine_min >= 0.99, entry.name
        assert entry.quantization
        modes = [p.mode for p in entry.quantization.products]
        shares[entry.precision] = modes.count(ProductMode.FLOAT) / len(modes)
        (certificate,) = entry.certificates
        if entry.precision is Precision.FP8:
            assert certificate.figures["cosine_mean"] >= FP8_MIN_COSINE  # type: ignore[operator]
    assert shares[Precision.INT8] == 0.25  # the attention's output alone
    assert 0.25 < shares[Precision.FP8] < 1
