"""What graphs compute of one product, held against the simulation that recipes are searched with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mexma_export.graph.builder import GraphBuilder
from mexma_export.graph.input_quantization import GROUP_HIGHEST, Activation, QuantizedInput
from mexma_export.graph.linear import int8_products
from mexma_export.quantize.fake_quantization import quantized, static_parameters
from mexma_runtime.bundle.manifest import ProductMode
from mexma_runtime.hardware import detect_hardware, sums_int8_exactly
from mexma_runtime.types import PADDED_DIALECTS, Dialect, Precision

Floats = NDArray[np.float32]
N_IN, N_OUT, GROUP = 64, 24, 32
LINEARS = tuple(f"layer.0.attention.{part}" for part in ("query", "key", "value"))
BIAS = np.linspace(-3, 3, N_OUT, dtype=np.float32)
QUERY_SCALE = 0.125
IS_EXACT = sums_int8_exactly(detect_hardware().instruction_sets)
BITS = 8 if IS_EXACT else 7


def serialized(model: ir.Model) -> bytes:
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One input and what is done to it."""

    x: Floats
    weights: Mapping[str, NDArray[np.int8]]
    scales: Mapping[str, Floats]
    how: QuantizedInput

    def model(self, dialect: Dialect, *, biased: bool = False) -> bytes:
        """A graph that multiplies `x`, `(batch, length, in)`, by the weights of three linear layers."""
        g = self.builder()
        x = g.input("layer.0.in", ["batch", "length", N_IN], ir.DataType.FLOAT)
        products = int8_products(dialect, {"layer.0.attention.qkv": self.how})
        write = products.linear if biased else products.product
        shape: list[int | str] = ["batch", "length", N_OUT]
        model = g.finish({write(g, x, name): shape for name in LINEARS}, name="products")
        return serialized(model)

    def joined(self) -> bytes | None:
        """One product with all three weights, queries times QUERY_SCALE, and biases; None: it is not written so."""
        g = self.builder()
        x = g.input("layer.0.in", ["batch", "length", N_IN], ir.DataType.FLOAT)
        products = int8_products(Dialect.PORTABLE, {"layer.0.attention.qkv": self.how})
        out = products.joined(g, x, "layer.0.attention", query_scale=QUERY_SCALE)
        if out is None:
            return None
        return serialized(g.finish({out: ["batch", "length", 3 * N_OUT]}, name="products"))

    def builder(self) -> GraphBuilder:
        """Of graphs over the three linear layers."""
        tensors = {
            **{f"{name}.weight": ir.tensor(weight) for name, weight in self.weights.items()},
            **{f"{name}.weight.scale": ir.tensor(scale) for name, scale in self.scales.items()},
            **{f"{name}.bias": ir.tensor(BIAS) for name in self.weights},
            "layer.0.attention.bias": ir.tensor(np.tile(BIAS, len(LINEARS))),
        }
        return GraphBuilder(tensors, floats=Precision.FP32)

    @property
    def expected(self) -> Floats:
        """float32 `(batch, length, 3 out)` by the simulation."""
        z = self.x.reshape(-1, N_IN)
        if self.how.multiplier is not None:
            z = z * self.how.multiplier
        if self.how.shift is not None:
            z = z + self.how.shift
        inner = quantized(z, self.how, GROUP)
        products = [inner @ (self.weights[name] * self.scales[name]) for name in LINEARS]
        result: Floats = np.concatenate(products, axis=1).reshape(*self.x.shape[:2], -1)
        return result


def make_case(seed: int, mode: ProductMode, activation: Activation, *, smoothed: bool, shifted: bool) -> Case:
    random = np.random.default_rng(seed)
    centre, widths = random.normal(0, 2), np.exp(random.normal(0, 1, N_IN))
    x = (random.normal(centre, 1, (2, 5, N_IN)) * widths).astype(np.float32)
    highest = (1 << (BITS - 1)) - 1
    how = QuantizedInput(
        mode=mode,
        activation=activation,
        multiplier=(1 / widths).astype(np.float32) if smoothed else None,
        shift=random.normal(0, 1, N_IN).astype(np.float32) if shifted else None,
        zero_point=activation.middle,
    )
    multiplier = np.float32(1) if how.multiplier is None else how.multiplier
    z = x * multiplier + (0 if how.shift is None else how.shift)
    scales: Any = 1.0
    if mode is ProductMode.STATIC:
        scales, zero_point = static_parameters(z, activation, float(random.uniform(0.5, 1)))
        how = dataclasses.replace(how, scale=scales, zero_point=zero_point)
    elif mode is ProductMode.TOKEN:
        if activation is Activation.UINT8 and random.random() < 0.5:
            how = dataclasses.replace(how, zero_point=32, least_reach=float(np.abs(z).mean()))
        reach = (z if how.is_one_sided else np.abs(z)).max(axis=-1, keepdims=True)
        scales = np.maximum(reach, how.least_reach) * how.unit_scale
    else:
        largest = np.abs(z).reshape(*z.shape[:2], -1, GROUP).max(axis=-1)
        scales = np.repeat(largest / np.float32(GROUP_HIGHEST), GROUP, axis=-1)
    # Halfway between two integers, the last bit of a float decides, and libraries may differ in it.
    is_halfway = np.abs(z / scales % 1 - 0.5) < 1e-3
    x = (x + is_halfway * 0.01 * scales / multiplier).astype(np.float32)
    return Case(
        x=x,
        weights={n: random.integers(-highest, highest + 1, (N_IN, N_OUT)).astype(np.int8) for n in LINEARS},
        scales={n: random.uniform(0.001, 0.01, N_OUT).astype(np.float32) for n in LINEARS},
        how=how,
    )


def in_onnxruntime(model: bytes, x: Floats, *, optimized: bool) -> Floats:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.concatenate(session.run(None, {"layer.0.in": x}), axis=-1)


def in_openvino(model: bytes, x: Floats) -> Floats:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    found = compiled([x])
    return np.concatenate([np.array(found[output]) for output in compiled.outputs], axis=-1)


def assert_close(found: Floats, case: Case, *, allowed: float = 1e-3) -> None:
    """Within a share of what the products spread over: a number on the edge between two integers may become either."""
    expected = case.expected
    spread = np.linalg.norm(expected - expected.mean(axis=(0, 1)))  # next to nothing where all inputs are clipped
    assert np.linalg.norm(found - expected) <= allowed * spread + 1e-6 * np.linalg.norm(expected)


def cases(*modes: ProductMode) -> st.SearchStrategy[Case]:
    return st.builds(
        make_case,
        st.integers(0, 10_000),
        st.sampled_from(modes),
        st.sampled_from([Activation.UINT8, Activation.INT8]),
        smoothed=st.booleans(),
        shifted=st.booleans(),
    )


in_both = cases(ProductMode.STATIC, ProductMode.TOKEN)


@settings(max_examples=40)
@given(in_both)
def test_fused_products_are_the_simulations(case: Case) -> None:
    assert_close(in_onnxruntime(case.model(Dialect.FUSED), case.x, optimized=True), case)


@pytest.mark.parametrize("dialect", PADDED_DIALECTS)
@pytest.mark.parametrize("mode", [ProductMode.STATIC, ProductMode.TOKEN])
def test_biases_are_added(mode: ProductMode, dialect: Dialect) -> None:
    case = make_case(0, mode, Activation.UINT8, smoothed=True, shifted=True)
    model = case.model(dialect, biased=True)
    found = in_onnxruntime(model, case.x, optimized=True)
    assert_close(found - np.tile(BIAS, len(LINEARS)), case)
    kinds = [node.op_type for node in onnx.load_from_string(model).graph.node]
    is_in_product = dialect is Dialect.FUSED and mode is ProductMode.STATIC
    assert kinds.count("Add") == 1 + (0 if is_in_product else len(LINEARS))  # one shifts the input


@settings(max_examples=40)
@given(in_both, st.booleans())
def test_portable_products_are_the_simulations_in_onnxruntime(case: Case, optimized: bool) -> None:
    assert_close(in_onnxruntime(case.model(Dialect.PORTABLE), case.x, optimized=optimized), case)


@settings(max_examples=15)
@given(in_both)
def test_portable_products_are_the_simulations_in_openvino(case: Case) -> None:
    assert_close(in_openvino(case.model(Dialect.PORTABLE), case.x), case)


@pytest.mark.skipif(not IS_EXACT, reason="without VNNI OpenVINO computes no int8 products with a scale a group")
@settings(max_examples=10)
@given(cases(ProductMode.GROUP))
def test_products_with_a_scale_a_group_are_the_simulations_in_openvino(case: Case) -> None:
    assert_close(in_openvino(case.model(Dialect.PORTABLE), case.x), case)


@pytest.mark.skipif(not IS_EXACT, reason="without VNNI OpenVINO computes no int8 products with a scale a group")
@settings(max_examples=10)
@given(cases(ProductMode.GROUP))
def test_queries_keys_and_values_in_one_product_are_the_three(case: Case) -> None:
    model = case.joined()
    assert model
    query, *others = np.split(in_openvino(model, case.x), len(LINEARS), axis=-1)
    assert_close(np.concatenate([query / QUERY_SCALE, *others], axis=-1) - np.tile(BIAS, len(LINEARS)), case)


@pytest.mark.parametrize("mode", [ProductMode.STATIC, ProductMode.TOKEN])
def test_only_products_in_groups_are_joined(mode: ProductMode) -> None:
    assert make_case(0, mode, Activation.UINT8, smoothed=True, shifted=True).joined() is None


@pytest.mark.parametrize("mode", [ProductMode.STATIC, ProductMode.TOKEN, ProductMode.GROUP])
def test_portable_products_are_standard_onnx(mode: ProductMode) -> None:
    model = onnx.load_from_string(
        make_case(0, mode, Activation.INT8, smoothed=True, shifted=True).model(Dialect.PORTABLE)
    )
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") == (0 if mode is ProductMode.GROUP else 1)
    assert kinds.count("DequantizeLinear") == 3 + kinds.count("QuantizeLinear")


@pytest.mark.parametrize("dialect", PADDED_DIALECTS)
def test_what_three_products_read_is_quantized_once(dialect: Dialect) -> None:
    case = make_case(0, ProductMode.TOKEN, Activation.UINT8, smoothed=True, shifted=True)
    model = onnx.load_from_string(case.model(dialect))
    kinds = [node.op_type for node in model.graph.node]
    assert [kinds.count(kind) for kind in ("Mul", "Add", "ReduceMax", "Div", "QuantizeLinear")] == [1 + 3, 1, 1, 1, 1]


def test_products_left_in_float_are_just_products() -> None:
    x, weight = np.ones((1, 2, N_IN), np.float32), np.random.default_rng(0).random((N_IN, N_OUT), np.float32)
    for dialect in PADDED_DIALECTS:
        g = GraphBuilder({f"{name}.weight": ir.tensor(weight) for name in LINEARS}, floats=Precision.FP32)
        value = g.input("layer.0.in", ["batch", "length", N_IN], ir.DataType.FLOAT)
        products = int8_products(dialect, {"layer.0.attention.qkv": QuantizedInput(mode=ProductMode.FLOAT)})
        model = g.finish({products.product(g, value, LINEARS[0]): ["batch", "length", N_OUT]}, name="float")
        found = in_onnxruntime(serialized(model), x, optimized=True)
        assert found == pytest.approx(x @ weight, rel=1e-5)


@pytest.mark.parametrize("dialect", PADDED_DIALECTS)
@pytest.mark.parametrize("value", [0.0, 1e-30])
def test_tokens_of_zeros_give_zeros(value: float, dialect: Dialect) -> None:
    case = make_case(0, ProductMode.TOKEN, Activation.UINT8, smoothed=False, shifted=False)
    x = np.full((1, 3, N_IN), value, np.float32)
    assert np.abs(in_onnxruntime(case.model(dialect), x, optimized=True)).max() < 1e-9
    if dialect is Dialect.PORTABLE:
        assert np.abs(in_openvino(case.model(dialect), x)).max() < 1e-9
