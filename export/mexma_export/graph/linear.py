"""How a linear layer is written: in the graph's float format, or over weights and inputs of 8 bits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mexma_export.graph.builder import FUSED_DOMAIN, GraphBuilder
from mexma_export.graph.input_quantization import QuantizedInput
from mexma_export.graph.linear_groups import group_of, linears_of
from mexma_runtime.bundle.manifest import ProductMode
from mexma_runtime.types import Dialect


class Products:
    """Writes linear layers; this one in the graph's float format."""

    def product(self, g: GraphBuilder, x: ir.Value, path: str) -> ir.Value:
        """`path.product`: x times `path.weight`, in the graph's float format."""
        return g.op("MatMul", [x, g.weight(f"{path}.weight")], f"{path}.product")

    def linear(self, g: GraphBuilder, x: ir.Value, path: str) -> ir.Value:
        """`path.out`: the product and `path.bias`."""
        return g.op("Add", [self.product(g, x, path), g.weight(f"{path}.bias")], f"{path}.out")

    def joined(self, g: GraphBuilder, x: ir.Value, path: str, *, query_scale: float) -> ir.Value | None:
        """`path.qkv.out`: queries times `query_scale`, keys and values side by side; None: better made apart."""
        return None


FLOAT_PRODUCTS = Products()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Integers:
    """What a product reads, quantized."""

    value: ir.Value
    scale: ir.Value
    zero_point: ir.Value
    reach: ir.Value | None
    """`(batch, length, 1)`: what each token was divided by, and its product has to be multiplied by. None: nothing."""

    def rescaled(self, g: GraphBuilder, product: Callable[[str], ir.Value], path: str) -> ir.Value:
        """`path.product`, which `product` gives under the name it gets, times each token's reach."""
        if self.reach is None:
            return product(f"{path}.product")
        return g.op("Mul", [product(f"{path}.product.unit"), self.reach], f"{path}.product")


class PortableInt8(Products):
    """Q/DQ around MatMul; without Q/DQ on the input where its scales are found by the library."""

    def __init__(self, inputs: Mapping[str, QuantizedInput]) -> None:
        self._inputs = inputs
        self._ready: dict[ir.Value, tuple[ir.Value, _Integers | None]] = {}

    def product(self, g: GraphBuilder, x: ir.Value, path: str) -> ir.Value:
        """MatMul over a dequantized weight."""
        quantized = self._inputs[group_of(path)]
        if quantized.mode is ProductMode.FLOAT:
            return super().product(g, x, path)
        if x not in self._ready:
            self._ready[x] = self._prepare(g, x, quantized)
        z, integers = self._ready[x]
        scale = g.weight(f"{path}.weight.scale")
        weight = g.op("DequantizeLinear", [g.weight(f"{path}.weight"), scale], f"{path}.weight.float", axis=1)
        product = functools.partial(g.op, "MatMul", [z, weight])
        return integers.rescaled(g, product, path) if integers else product(f"{path}.product")

    def joined(self, g: GraphBuilder, x: ir.Value, path: str, *, query_scale: float) -> ir.Value | None:
        """One product where the library finds its input's scales: it would do so for each of three."""
        group = f"{path}.qkv"
        if self._inputs[group].mode is not ProductMode.GROUP:
            return None
        linears, bias = linears_of(group), g.array(f"{path}.bias")
        gains = np.repeat(np.array([query_scale, 1, 1], np.float32), bias.size // 3)
        scales = np.concatenate([g.array(f"{linear}.weight.scale") for linear in linears])
        weight = g.op("Concat", [g.weight(f"{linear}.weight") for linear in linears], f"{group}.weight", axis=1)
        parts = [weight, g.constant(f"{group}.weight.scale", scales * gains)]
        floats = g.op("DequantizeLinear", parts, f"{group}.weight.float", axis=1)
        product = g.op("MatMul", [_smoothed(g, x, self._inputs[group]), floats], f"{group}.product")
        return g.op("Add", [product, g.constant(f"{group}.bias", bias * gains)], f"{group}.out")

    def _prepare(self, g: GraphBuilder, x: ir.Value, quantized: QuantizedInput) -> tuple[ir.Value, _Integers | None]:
        if quantized.mode is ProductMode.GROUP:
            return _smoothed(g, x, quantized), None
        integers = _integers(g, x, quantized)
        parts = [integers.value, integers.scale, integers.zero_point]
        return g.op("DequantizeLinear", parts, f"{x.name}.dequantized"), integers


class FusedInt8(Products):
    """int8 products of the fused dialect, by MatMulIntegerToFloat."""

    def __init__(self, inputs: Mapping[str, QuantizedInput]) -> None:
        self._inputs = inputs
        self._ready: dict[ir.Value, _Integers] = {}

    def product(self, g: GraphBuilder, x: ir.Value, path: str) -> ir.Value:
        """One integer product."""
        if self._inputs[group_of(path)].mode is ProductMode.FLOAT:
            return super().product(g, x, path)
        integers = self._read(g, x, path)
        return integers.rescaled(g, functools.partial(self._multiplied, g, integers, path), path)

    def linear(self, g: GraphBuilder, x: ir.Value, path: str) -> ir.Value:
        """One integer product that adds the bias, where nothing stands between them."""
        if self._inputs[group_of(path)].mode is not ProductMode.STATIC:
            return super().linear(g, x, path)
        return self._multiplied(g, self._read(g, x, path), path, f"{path}.out", g.weight(f"{path}.bias"))

    def _read(self, g: GraphBuilder, x: ir.Value, path: str) -> _Integers:
        if x not in self._ready:
            self._ready[x] = _integers(g, x, self._inputs[group_of(path)])
        return self._ready[x]

    def _multiplied(
        self, g: GraphBuilder, integers: _Integers, path: str, name: str, bias: ir.Value | None = None
    ) -> ir.Value:
        weight, scale = g.weight(f"{path}.weight"), g.weight(f"{path}.weight.scale")
        parts = [integers.value, weight, integers.scale, scale, integers.zero_point, *([None, bias] if bias else [])]
        return g.op("MatMulIntegerToFloat", parts, name, domain=FUSED_DOMAIN)


def int8_products(dialect: Dialect, inputs: Mapping[str, QuantizedInput]) -> Products:
    """How `dialect` writes products; `inputs` holds every group of the model."""
    return (PortableInt8 if dialect is Dialect.PORTABLE else FusedInt8)(inputs)


def _smoothed(g: GraphBuilder, x: ir.Value, quantized: QuantizedInput) -> ir.Value:
    dtype = g.float_type.numpy()
    if quantized.multiplier is not None:
        multiplier = g.constant(f"{x.name}.multiplier", quantized.multiplier.astype(dtype))
        x = g.op("Mul", [x, multiplier], f"{x.name}.multiplied")
    if quantized.shift is not None:
        x = g.op("Add", [x, g.constant(f"{x.name}.shift", quantized.shift.astype(dtype))], f"{x.name}.shifted")
    return x


def _integers(g: GraphBuilder, x: ir.Value, quantized: QuantizedInput) -> _Integers:
    """QuantizeLinear with one scale for all text; tokens with a scale each are divided by their reach before."""
    z, reach = _smoothed(g, x, quantized), None
    scale = quantized.scale
    if quantized.mode is ProductMode.TOKEN:
        reach, scale = _reach(g, x, z, quantized), quantized.unit_scale
        z = g.op("Div", [z, reach], f"{x.name}.unit")
    parameters = (
        g.constant(f"{x.name}.scale", np.asarray(scale, dtype=g.float_type.numpy())),
        g.constant(f"{x.name}.zero_point", np.asarray(quantized.zero_point, dtype=quantized.activation.dtype)),
    )
    value = g.op("QuantizeLinear", [z, *parameters], f"{x.name}.quantized")
    return _Integers(value=value, scale=parameters[0], zero_point=parameters[1], reach=reach)


def _reach(g: GraphBuilder, x: ir.Value, z: ir.Value, quantized: QuantizedInput) -> ir.Value:
    """What the largest integer stands for in each token: `(batch, length, 1)`."""
    if not quantized.is_one_sided:
        z = g.op("Abs", [z], f"{x.name}.magnitude")
    largest = g.op(
        "ReduceMax", [z, g.constant("token.axis", np.array([-1], np.int64))], f"{x.name}.largest", keepdims=1
    )
    dtype = g.float_type.numpy()
    smallest = max(quantized.least_reach, float(np.finfo(dtype).smallest_subnormal))
    least = g.constant(f"{x.name}.least_reach", np.asarray(smallest, dtype=dtype))
    return g.op("Max", [largest, least], f"{x.name}.reach")
