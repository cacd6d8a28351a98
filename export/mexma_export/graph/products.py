"""How a matrix product is written: in the graph's float format, or over int8 weights and int8 inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import onnx_ir as ir

from mexma_export.graph.builder import FUSED_DOMAIN, GraphBuilder
from mexma_export.quantize.groups import group_of
from mexma_export.quantize.inputs import QuantizedInput
from mexma_runtime.manifest import ProductMode
from mexma_runtime.types import Dialect

SMALLEST_SCALE = 1e-12
"""Of a token whose input is all zeros, where 0 / 0 would be NaN."""


class Products(Protocol):
    """Writes the product of one linear layer."""

    def __call__(self, g: GraphBuilder, x: ir.Value, path: str) -> ir.Value:
        """`path.product`: x times `path.weight`, in the graph's float format; the bias is the caller's."""


def float_product(g: GraphBuilder, x: ir.Value, path: str) -> ir.Value:
    """MatMul."""
    return g.op("MatMul", [x, g.weight(f"{path}.weight")], f"{path}.product")


class PortableInt8:
    """Q/DQ around MatMul; without Q/DQ on the input where its scales are found by the library."""

    def __init__(self, inputs: Mapping[str, QuantizedInput]) -> None:
        self._inputs = inputs
        self._ready: dict[ir.Value, ir.Value] = {}

    def __call__(self, g: GraphBuilder, x: ir.Value, path: str) -> ir.Value:
        """MatMul over a dequantized weight."""
        quantized = self._inputs[group_of(path)]
        if quantized.mode is ProductMode.FLOAT:
            return float_product(g, x, path)
        if x not in self._ready:
            self._ready[x] = self._prepare(g, x, quantized)
        scale = g.weight(f"{path}.weight.scale")
        weight = g.op("DequantizeLinear", [g.weight(f"{path}.weight"), scale], f"{path}.weight.float", axis=1)
        return g.op("MatMul", [self._ready[x], weight], f"{path}.product")

    def _prepare(self, g: GraphBuilder, x: ir.Value, quantized: QuantizedInput) -> ir.Value:
        z = _migrated(g, x, quantized)
        if quantized.mode is ProductMode.DYNAMIC:
            return z
        scale, zero_point = _static_parameters(g, x, quantized)
        integers = g.op("QuantizeLinear", [z, scale, zero_point], f"{x.name}.quantized")
        return g.op("DequantizeLinear", [integers, scale, zero_point], f"{x.name}.dequantized")


class FusedInt8:
    """MatMulIntegerToFloat; scales a token are found in the graph and multiplied back into the product."""

    def __init__(self, inputs: Mapping[str, QuantizedInput]) -> None:
        self._inputs = inputs
        self._ready: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value, ir.Value | None]] = {}

    def __call__(self, g: GraphBuilder, x: ir.Value, path: str) -> ir.Value:
        """One integer product."""
        quantized = self._inputs[group_of(path)]
        if quantized.mode is ProductMode.FLOAT:
            return float_product(g, x, path)
        if x not in self._ready:
            self._ready[x] = self._prepare(g, x, quantized)
        integers, scale, zero_point, token_scale = self._ready[x]
        weight = [g.weight(f"{path}.weight"), scale, g.weight(f"{path}.weight.scale")]
        name = f"{path}.product" if token_scale is None else f"{path}.product.unscaled"
        product = g.op("MatMulIntegerToFloat", [integers, *weight, zero_point], name, domain=FUSED_DOMAIN)
        return product if token_scale is None else g.op("Mul", [product, token_scale], f"{path}.product")

    def _prepare(
        self, g: GraphBuilder, x: ir.Value, quantized: QuantizedInput
    ) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value | None]:
        """Integers, their scale and zero point, and what to multiply a token's product by."""
        z = _migrated(g, x, quantized)
        scale, zero_point = _static_parameters(g, x, quantized)
        if quantized.mode is ProductMode.STATIC:
            return g.op("QuantizeLinear", [z, scale, zero_point], f"{x.name}.quantized"), scale, zero_point, None
        token_scale = self._token_scale(g, x, z, quantized)
        unit = g.op("Div", [z, token_scale], f"{x.name}.unit")
        return g.op("QuantizeLinear", [unit, scale, zero_point], f"{x.name}.quantized"), scale, zero_point, token_scale

    def _token_scale(self, g: GraphBuilder, x: ir.Value, z: ir.Value, quantized: QuantizedInput) -> ir.Value:
        """The least scale that holds a token's largest and smallest number: `(batch, length, 1)`."""
        axis = g.constant("token.axis", np.array([-1], np.int64))
        above = 1 / (quantized.activation.highest - quantized.zero_point)
        below = 1 / (quantized.activation.lowest - quantized.zero_point)
        highest = g.op("ReduceMax", [z, axis], f"{x.name}.highest", keepdims=1)
        lowest = g.op("ReduceMin", [z, axis], f"{x.name}.lowest", keepdims=1)
        bounds = [
            g.op("Mul", [highest, g.number(above)], f"{x.name}.above"),
            g.op("Mul", [lowest, g.number(below)], f"{x.name}.below"),
        ]
        return g.op("Max", [*bounds, g.number(SMALLEST_SCALE)], f"{x.name}.token_scale")


def int8_products(dialect: Dialect, inputs: Mapping[str, QuantizedInput]) -> Products:
    """How `dialect` writes products; `inputs` holds every group of the model."""
    return (PortableInt8 if dialect is Dialect.PORTABLE else FusedInt8)(inputs)


def _migrated(g: GraphBuilder, x: ir.Value, quantized: QuantizedInput) -> ir.Value:
    if quantized.multiplier is not None:
        multiplier = g.constant(f"{x.name}.multiplier", quantized.multiplier)
        x = g.op("Mul", [x, multiplier], f"{x.name}.multiplied")
    if quantized.shift is not None:
        x = g.op("Add", [x, g.constant(f"{x.name}.shift", quantized.shift)], f"{x.name}.shifted")
    return x


def _static_parameters(g: GraphBuilder, x: ir.Value, quantized: QuantizedInput) -> tuple[ir.Value, ir.Value]:
    scale = np.asarray(1 if quantized.scale is None else quantized.scale, dtype=np.float32)
    zero_point = np.asarray(quantized.zero_point, dtype=quantized.activation.dtype)
    return g.constant(f"{x.name}.scale", scale), g.constant(f"{x.name}.zero_point", zero_point)
