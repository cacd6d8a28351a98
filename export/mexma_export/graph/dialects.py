"""How one dialect writes the four steps that XLM-R is made of.

Shapes: x `(batch, length, hidden)`, packed `(tokens, hidden)`; a query may be shorter than its keys (the CLS row alone
in the last layer). Every step ends in a value of the same name in each dialect, so that two graphs can be compared
value by value.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

import numpy as np
import onnx_ir as ir

from mexma_export.checkpoint.config import ModelConfig
from mexma_export.graph.builder import FUSED_DOMAIN, GraphBuilder
from mexma_export.graph.layouts import Tokens
from mexma_export.graph.linear import Products
from mexma_runtime.types import Dialect, Precision

MASKED = {ir.DataType.FLOAT: -3.0e38, ir.DataType.FLOAT16: -3.0e4}
"""Added to the score of a padded key: exp() of it is exactly 0, and no sum with it overflows."""

Bounds: TypeAlias = tuple[ir.Value, ...]
"""What tells where sentences end; the form is the dialect's own."""


class Steps(Protocol):
    """How one dialect writes the steps of a layer."""

    def bounds(self, g: GraphBuilder, tokens: Tokens) -> Bounds:
        """What tells `attention` where sentences end, made once a graph."""

    def attention(self, g: GraphBuilder, query: ir.Value, keys: ir.Value, bounds: Bounds, path: str) -> ir.Value:
        """Self-attention up to the concatenated heads: `path.out`, a row for each of `query`."""

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

    def bounds(self, g: GraphBuilder, tokens: Tokens) -> Bounds:
        """`(batch, 1, 1, length)`: 0 for tokens, MASKED for padding."""
        is_token = g.op("Cast", [tokens.inputs["attention_mask"]], "attention_mask.is_token", to=ir.DataType.BOOL)
        bias = g.op("Where", [is_token, g.number(0), g.number(MASKED[g.float_type])], "attention_mask.bias")
        axes = g.constant("attention_mask.axes", np.array([1, 2], dtype=np.int64))
        return (g.op("Unsqueeze", [bias, axes], "attention_mask.bias4d"),)

    def attention(self, g: GraphBuilder, query: ir.Value, keys: ir.Value, bounds: Bounds, path: str) -> ir.Value:
        """softmax(q k^T / sqrt(head size) + mask) v: what TensorRT computes in one kernel.

        Its documentation ("Fused Attention") wants queries that are scaled before the product, a mask of their type
        that is added, and one type throughout: no cast, not even around the softmax.
        """
        scaled, k, v = self._scaled_heads(g, query, keys, path)
        # Written as two steps, the keys' transposition becomes part of OpenVINO's product; as one it costs a copy.
        columns = g.op("Transpose", [k], f"{path}.key.columns", perm=[0, 1, 3, 2])
        scores = g.op("MatMul", [scaled, columns], f"{path}.scores")
        masked = g.op("Add", [scores, *bounds], f"{path}.scores.masked")
        weights = g.op("Softmax", [masked], f"{path}.weights", axis=-1)
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

    def bounds(self, g: GraphBuilder, tokens: Tokens) -> Bounds:
        """int32 `(batch,)`: tokens a sentence; the form that keeps flash kernels possible on CUDA."""
        axes = g.constant("attention_mask.axes", np.array([1], dtype=np.int64))
        mask = tokens.inputs["attention_mask"]
        return (g.op("ReduceSum", [mask, axes], "attention_mask.lengths", keepdims=0),)

    def attention(self, g: GraphBuilder, query: ir.Value, keys: ir.Value, bounds: Bounds, path: str) -> ir.Value:
        """MultiHeadAttention over three products; it adds their biases and scales the scores."""
        q = self._products.product(g, query, f"{path}.query")
        k = self._products.product(g, keys, f"{path}.key")
        v = self._products.product(g, keys, f"{path}.value")
        bias = g.weight(f"{path}.bias")
        heads = self._config.n_heads
        inputs = [q, k, v, bias, *bounds]
        return g.op("MultiHeadAttention", inputs, f"{path}.out", domain=FUSED_DOMAIN, num_heads=heads)


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


class Packed(Fused):
    """Fused, over the tokens of all sentences end to end; onnxruntime has PackedMultiHeadAttention on CUDA alone.

    Queries, keys and values come from one product: for few tokens three take three times as long. In float alone.
    """

    def bounds(self, g: GraphBuilder, tokens: Tokens) -> Bounds:
        """What the operator takes, and each sentence's first token."""
        names = ("token_offset", "cumulative_sequence_length", "first_token")
        return tuple(tokens.inputs[name] for name in names)

    def attention(self, g: GraphBuilder, query: ir.Value, keys: ir.Value, bounds: Bounds, path: str) -> ir.Value:
        """PackedMultiHeadAttention; its queries are all tokens always, of which one layer takes the first ones."""
        token_offset, cu_seqlens, first_token = bounds
        n_heads, size = self._config.n_heads, self._config.head_size
        # Head by head the columns of query, key and value, as the operator takes them; joined once, at loading.
        parts = [
            _reshaped(g, g.weight(f"{path}.{part}.weight"), -1, n_heads, 1, size) for part in ("query", "key", "value")
        ]
        weight = _reshaped(g, g.op("Concat", parts, f"{path}.qkv.weight", axis=2), -1, n_heads * 3 * size)
        qkv = _reshaped(g, g.op("MatMul", [keys, weight], f"{path}.qkv.product"), -1, n_heads, 3, size)
        inputs = [qkv, None, None, g.weight(f"{path}.bias"), token_offset, cu_seqlens]
        name = f"{path}.out" if query is keys else f"{path}.all"
        out = g.op("PackedMultiHeadAttention", inputs, name, domain=FUSED_DOMAIN, num_heads=n_heads)
        return out if query is keys else g.op("Gather", [out, first_token], f"{path}.out", axis=0)


def _reshaped(g: GraphBuilder, x: ir.Value, *shape: int) -> ir.Value:
    name = "x".join(map(str, shape))
    return g.op("Reshape", [x, g.constant(f"shape.{name}", np.array(shape, np.int64))], f"{x.name}.{name}")


def steps_of(dialect: Dialect, precision: Precision, config: ModelConfig, products: Products) -> Steps:
    """How `dialect` writes a model in `precision`."""
    if dialect is Dialect.PORTABLE:
        return Portable(config, products)
    if dialect is Dialect.PACKED:
        return Packed(config, products)
    return (FusedAttention if precision is Precision.INT8 else Fused)(config, products)
