"""What TensorRT is given: the graphs themselves, on onnxruntime's CPU provider, and against its parser's list."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from mexma_export.corpus.sample import load_sample
from mexma_export.parity.figures import compare
from mexma_export.quantize.options import FP8_MIN_COSINE
from mexma_runtime import Encoder
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry, ProductMode
from mexma_runtime.types import QUANTIZED, Precision

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
def test_operators_types_and_opset_are_in_the_parsers_list(tensorrt_bundle: Bundle, precision: Precision) -> None:
    model, kinds = graph_of(tensorrt_bundle, precision)
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
def test_zero_points_are_zero_and_scales_positive(tensorrt_bundle: Bundle, precision: Precision) -> None:
    model, _ = graph_of(tensorrt_bundle, precision)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    quantizing = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert bool(quantizing) == (precision in QUANTIZED)
    for node in quantizing:
        assert np.all(arrays[node.input[1]] > 0), node.name
        assert all(not np.any(arrays[name].astype(np.float32)) for name in node.input[2:]), node.name


@pytest.mark.parametrize("precision", sorted(QUANTIZED))
def test_only_products_read_what_was_quantized_and_the_rest_is_fp16(
    tensorrt_bundle: Bundle, precision: Precision
) -> None:
    model, kinds = graph_of(tensorrt_bundle, precision)
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
    quantized = [p for p in quantization_of(tensorrt_bundle, precision) if p.mode is not ProductMode.FLOAT]
    assert n_products == sum(3 if p.name.endswith("qkv") else 1 for p in quantized)
    assert {p.mode for p in quantized} == {ProductMode.STATIC}


def quantization_of(bundle: Bundle, precision: Precision) -> list:  # type: ignore[type-arg]
    quantization = entry_of(bundle, precision).quantization
    assert quantization
    return quantization.products


@each
def test_engines_say_what_runs_them(tensorrt_bundle: Bundle, precision: Precision) -> None:
    entry = entry_of(tensorrt_bundle, precision)
    assert {"tensorrt", "tensorrt-rtx", "onnxruntime"} == set(entry.requires)
    suffix = {Precision.FP16: "", Precision.INT8: ".tensorrt.int8", Precision.FP8: ".tensorrt.e4m3"}[precision]
    assert entry.name == f"portable.{precision}{suffix}"


def test_fidelity_on_minilm(minilm_for_tensorrt: Bundle) -> None:
    """The bars of int8, in mean pooling, for both; fp8 leaves in fp16 what it takes."""
    out = minilm_for_tensorrt.folder
    with Encoder.load(out, precision="fp32", dialect="portable") as encoder:
        expected = encoder.encode(ENGLISH)
    shares = {}
    for entry in minilm_for_tensorrt.manifest.engines:
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
