"""How one dialect writes the four steps that XLM-R is made of.

Shapes: x `(batch, length, hidden)`; a query may be shorter than its keys (the CLS row alone in the last layer).
Every step ends in a value of the same name in each dialect, so that two graphs can be compared value by value.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import onnx_ir as ir

from mexma_export.config import ModelConfig
from mexma_export.graph.builder import FUSED_DOMAIN, GraphBuilder
from mexma_export.graph.products import Products
from mexma_runtime.types import Dialect, Precision

MASKED = -3.0e38
"""Added to the score of a padded key: exp() of it is exactly 0 in fp32, and no sum with it overflows."""


class Steps(Protocol):
    """One dialect."""

    def key_mask(self, g: GraphBuilder, attention_mask: ir.Value) -> ir.Value:
        """What `attention` takes as its mask, made once a graph from int32 `(batch, length)`."""

    def attention(self, g: GraphBuilder, query: ir.Value, keys: ir.Value, mask: ir.Value, path: str) -> ir.Value:
        """Self-attention up to the concatenated heads: `path.out`."""

    def linear_add_norm(
        self, g: GraphBuilder, x: ir.Value, residual: ir.Value, linear: str, norm: str, name: str
    ) -> ir.Value:
        """LayerNorm(linear(x) + residual)."""

    def linear_gelu(self, g: GraphBuilder, x: ir.Value, path: str, name: str) -> ir.Value:
        """gelu(linear(x))."""

    def add_norm(self, g: GraphBuilder, x: ir.Value, residual: ir.Value, norm: str, name: str) -> ir.Value:
        """LayerNorm(x + residual)."""


class Portable:
    """Standard ONNX operators alone."""

    def __init__(self, config: ModelConfig, products: Products) -> None:
        self._config, self._products = config, products

    def key_mask(self, g: GraphBuilder, attention_mask: ir.Value) -> ir.Value:
        """fp32 `(batch, 1, 1, length)`: 0 for tokens, MASKED for padding."""
        is_token = g.op("Cast", [attention_mask], "attention_mask.is_token", to=ir.DataType.BOOL)
        zero = g.constant("attention_mask.zero", np.array(0, dtype=np.float32))
        masked = g.constant("attention_mask.masked", np.array(MASKED, dtype=np.float32))
        bias = g.op("Where", [is_token, zero, masked], "attention_mask.bias")
        axes = g.constant("attention_mask.axes", np.array([1, 2], dtype=np.int64))
        return g.op("Unsqueeze", [bias, axes], "attention_mask.bias4d")

    def attention(self, g: GraphBuilder, query: ir.Value, keys: ir.Value, mask: ir.Value, path: str) -> ir.Value:
        """softmax(q k^T / sqrt(head size) + mask) v, the softmax in fp32 whatever the precision."""
        scaled, k, v = self._scaled_heads(g, query, keys, path)
        # Written as two steps, the keys' transposition becomes part of OpenVINO's product; as one it costs a copy.
        columns = g.op("Transpose", [k], f"{path}.key.columns", perm=[0, 1, 3, 2])
        scores = g.op("MatMul", [scaled, columns], f"{path}.scores")
        if g.float_type is not ir.DataType.FLOAT:
            scores = g.op("Cast", [scores], f"{path}.scores.fp32", to=ir.DataType.FLOAT)
        masked = g.op("Add", [scores, mask], f"{path}.scores.masked")
        weights = g.op("Softmax", [masked], f"{path}.weights", axis=-1)
        if g.float_type is not ir.DataType.FLOAT:
            weights = g.op("Cast", [weights], f"{path}.weights.cast", to=g.float_type)
        context = g.op("MatMul", [weights, v], f"{path}.context")
        rows = g.op("Transpose", [context], f"{path}.context.rows", perm=[0, 2, 1, 3])
        shape = g.constant("attention.merged_shape", np.array([0, 0, self._config.hidden_size], dtype=np.int64))
        return g.op("Reshape", [rows, shape], f"{path}.out")

    def linear_add_norm(
        self, g: GraphBuilder, x: ir.Value, residual: ir.Value, linear: str, norm: str, name: str
    ) -> ir.Value:
        """MatMul, Add, Add, LayerNormalization."""
        return self.add_norm(g, self._products.linear(g, x, linear), residual, norm, name)

    def linear_gelu(self, g: GraphBuilder, x: ir.Value, path: str, name: str) -> ir.Value:
        """MatMul, Add, Gelu (exact)."""
        return g.op("Gelu", [self._products.linear(g, x, path)], name)

    def add_norm(self, g: GraphBuilder, x: ir.Value, residual: ir.Value, norm: str, name: str) -> ir.Value:
        """Add, LayerNormalization with its statistics in fp32 (stash_type 1)."""
        total = g.op("Add", [x, residual], f"{norm}.sum")
        inputs = [total, g.weight(f"{norm}.gamma"), g.weight(f"{norm}.beta")]
        epsilon = self._config.layer_norm_epsilon
        return g.op("LayerNormalization", inputs, name, axis=-1, epsilon=epsilon, stash_type=1)

    def _scaled_heads(
        self, g: GraphBuilder, query: ir.Value, keys: ir.Value, path: str
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """q / sqrt(head size), k and v: `(batch, heads, length, head size)` each."""
        scale = self._config.head_size**-0.5
        joined = self._products.joined(g, keys, path, query_scale=scale) if query is keys else None
        if joined is None:
            q, k, v = (
                self._heads(g, self._products.linear(g, x, f"{path}.{part}"), f"{path}.{part}")
                for part, x in (("query", query), ("key", keys), ("value", keys))
            )
            return g.op("Mul", [q, g.number(scale)], f"{path}.query.scaled"), k, v
        sizes = np.array([0, 0, 3, self._config.n_heads, self._config.head_size], dtype=np.int64)
        split = g.op("Reshape", [joined, g.constant("attention.joined_shape", sizes)], f"{path}.qkv.heads")
        # Outermost, each part is one piece of memory, and taking it costs no copy.
        parts = g.op("Transpose", [split], f"{path}.qkv.transposed", perm=[2, 0, 3, 1, 4])
        q, k, v = (
            g.op("Gather", [parts, g.constant(f"attention.part.{n}", np.array(n, np.int64))], f"{path}.{name}", axis=0)
            for n, name in enumerate(("query.scaled", "key.transposed", "value.transposed"))
        )
        return q, k, v

    def _heads(self, g: GraphBuilder, x: ir.Value, path: str) -> ir.Value:
        """`(batch, heads, length, head size)`."""
        sizes = np.array([0, 0, self._config.n_heads, self._config.head_size], dtype=np.int64)
        split = g.op("Reshape", [x, g.constant("attention.split_shape", sizes)], f"{path}.heads")
        return g.op("Transpose", [split], f"{path}.transposed", perm=[0, 2, 1, 3])


class FusedAttention(Portable):
    """MultiHeadAttention, and the rest in standard operators.

    On a CPU onnxruntime computes Add and LayerNormalization faster than SkipLayerNormalization, and its int8 products
    add the bias themselves.
    """

    def key_mask(self, g: GraphBuilder, attention_mask: ir.Value) -> ir.Value:
        """int32 `(batch,)`: tokens a sentence; the form that keeps flash kernels possible on CUDA."""
        axes = g.constant("attention_mask.axes", np.array([1], dtype=np.int64))
        return g.op("ReduceSum", [attention_mask, axes], "attention_mask.lengths", keepdims=0)

    def attention(self, g: GraphBuilder, query: ir.Value, keys: ir.Value, mask: ir.Value, path: str) -> ir.Value:
        """MultiHeadAttention over three products; it adds their biases and scales the scores."""
        q = self._products.product(g, query, f"{path}.query")
        k = self._products.product(g, keys, f"{path}.key")
        v = self._products.product(g, keys, f"{path}.value")
        bias = g.weight(f"{path}.bias")
        heads = self._config.n_heads
        return g.op("MultiHeadAttention", [q, k, v, bias, mask], f"{path}.out", domain=FUSED_DOMAIN, num_heads=heads)


class Fused(FusedAttention):
    """onnxruntime's own operators, which take the biases of the products before them."""

    def linear_add_norm(
        self, g: GraphBuilder, x: ir.Value, residual: ir.Value, linear: str, norm: str, name: str
    ) -> ir.Value:
        """MatMul, SkipLayerNormalization with the product's bias."""
        return self._skip_norm(
            g, self._products.product(g, x, linear), residual, norm, name, g.weight(f"{linear}.bias")
        )

    def linear_gelu(self, g: GraphBuilder, x: ir.Value, path: str, name: str) -> ir.Value:
        """MatMul, BiasGelu (exact)."""
        product = self._products.product(g, x, path)
        return g.op("BiasGelu", [product, g.weight(f"{path}.bias")], name, domain=FUSED_DOMAIN)

    def add_norm(self, g: GraphBuilder, x: ir.Value, residual: ir.Value, norm: str, name: str) -> ir.Value:
        """SkipLayerNormalization."""
        return self._skip_norm(g, x, residual, norm, name, None)

    def _skip_norm(
        self, g: GraphBuilder, x: ir.Value, residual: ir.Value, norm: str, name: str, bias: ir.Value | None
    ) -> ir.Value:
        inputs = [x, residual, g.weight(f"{norm}.gamma"), g.weight(f"{norm}.beta"), *([bias] if bias else [])]
        epsilon = self._config.layer_norm_epsilon
        return g.op("SkipLayerNormalization", inputs, name, domain=FUSED_DOMAIN, epsilon=epsilon)


def steps_of(dialect: Dialect, precision: Precision, config: ModelConfig, products: Products) -> Steps:
    """How `dialect` writes a model in `precision`."""
    if dialect is Dialect.PORTABLE:
        return Portable(config, products)
    return (FusedAttention if precision is Precision.INT8 else Fused)(config, products)
