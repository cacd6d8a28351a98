"""The model on one page: embeddings, layers, the last layer for the rows that pooling needs, pooling.

Post-LayerNorm Transformer encoder as in XLM-RoBERTa (Conneau et al., 2020, arXiv:1911.02116) and BERT.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from mexma_export.config import ModelConfig
from mexma_export.graph.builder import GraphBuilder
from mexma_export.graph.dialects import Steps, steps_of
from mexma_export.graph.products import FLOAT_PRODUCTS, Products
from mexma_runtime.types import Dialect, Pooling, Precision

INPUTS = ("input_ids", "attention_mask", "position_ids")
"""int32 `(batch, length)` each; the mask is 1 for tokens and 0 for padding, which is on the right."""
LAYER_INPUTS = ("hidden", "attention_mask")
"""Of `write_layer`."""
OUTPUT = "sentence_embedding"
"""float32 `(batch, hidden)`, pooled and not normalised, in every precision."""


def write_encoder(
    config: ModelConfig,
    weights: Mapping[str, ir.TensorProtocol],
    *,
    dialect: Dialect,
    precision: Precision,
    pooling: Pooling,
    products: Products = FLOAT_PRODUCTS,
) -> ir.Model:
    """The graph of one engine over `weights` (names and layout: weights.write_weights), layers by `products`."""
    g = GraphBuilder(weights, precision=precision)
    steps = steps_of(dialect, precision, config, products)
    input_ids, attention_mask, position_ids = (g.input(name, ["batch", "length"]) for name in INPUTS)
    mask = steps.key_mask(g, attention_mask)

    x = _embeddings(g, steps, input_ids, position_ids)
    for layer in range(config.n_layers - 1):
        x = _layer(g, steps, x, x, mask, f"layer.{layer}")
    # CLS pooling reads one row, so the last layer computes that row alone: queries, residual and FFN of one token.
    rows = _first_row(g, x) if pooling is Pooling.CLS else x
    x = _layer(g, steps, rows, x, mask, f"layer.{config.n_layers - 1}")

    if g.float_type is not ir.DataType.FLOAT:
        x = g.op("Cast", [x], "pooling.fp32", to=ir.DataType.FLOAT)
    output = _drop_row_axis(g, x) if pooling is Pooling.CLS else _mean(g, x, attention_mask)
    return g.finish({output: ["batch", config.hidden_size]}, name=f"{config.family}.{dialect}.{precision}.{pooling}")


def write_layer(
    config: ModelConfig,
    weights: Mapping[str, ir.TensorProtocol],
    layer: int,
    *,
    dialect: Dialect,
    pooling: Pooling,
    products: Products = FLOAT_PRODUCTS,
) -> ir.Model:
    """The graph of one layer, for calibration: LAYER_INPUTS in, the values that its products read and its output out.

    `hidden` is float32 `(batch, length, hidden)`, all sentences of one length. The outputs: `layer_taps(layer)`.
    """
    g = GraphBuilder(weights, precision=Precision.FP32)
    steps = steps_of(dialect, Precision.FP32, config, products)
    x = g.input(LAYER_INPUTS[0], ["batch", "length", config.hidden_size], ir.DataType.FLOAT)
    mask = steps.key_mask(g, g.input(LAYER_INPUTS[1], ["batch", "length"]))
    is_pooled_row = pooling is Pooling.CLS and layer == config.n_layers - 1
    _layer(g, steps, _first_row(g, x) if is_pooled_row else x, x, mask, f"layer.{layer}")
    taps: dict[ir.Value, list[int | str]] = {
        g.value(name): ["batch", "rows", f"{name}.width"] for name in layer_taps(layer)
    }
    return g.finish(taps, name=f"{config.family}.layer.{layer}")


def layer_taps(layer: int) -> tuple[str, str, str, str]:
    """What the attention's output, FFN-up and FFN-down of a layer read, and the layer's own output."""
    path = f"layer.{layer}"
    return f"{path}.attention.out", f"{path}.attention.normed", f"{path}.ffn.gelu", f"{path}.out"


def _embeddings(g: GraphBuilder, steps: Steps, input_ids: ir.Value, position_ids: ir.Value) -> ir.Value:
    """LayerNorm(word + position); the one token type's row is part of the position table."""
    words = _word_vectors(g, input_ids)
    positions = g.op("Gather", [g.weight("embeddings.position"), position_ids], "embeddings.positions", axis=0)
    return steps.add_norm(g, words, positions, "embeddings.norm", "embeddings.out")


def _word_vectors(g: GraphBuilder, input_ids: ir.Value) -> ir.Value:
    """Rows of the word table; of a table in int8, times the scale of each row."""
    table = g.weight("embeddings.word")
    if table.const_value is None or table.const_value.dtype is not ir.DataType.INT8:
        return g.op("Gather", [table, input_ids], "embeddings.words", axis=0)
    integers = g.op("Gather", [table, input_ids], "embeddings.words.int8", axis=0)
    scales = g.op("Gather", [g.weight("embeddings.word.scale"), input_ids], "embeddings.words.scale", axis=0)
    floats = g.op("Cast", [integers], "embeddings.words.float", to=g.float_type)
    return g.op("Mul", [floats, scales], "embeddings.words")


def _layer(g: GraphBuilder, steps: Steps, rows: ir.Value, x: ir.Value, mask: ir.Value, path: str) -> ir.Value:
    """One layer, computed for `rows` of `x`."""
    context = steps.attention(g, rows, x, mask, f"{path}.attention")
    attended = steps.linear_add_norm(
        g, context, rows, f"{path}.attention.output", f"{path}.attention.norm", f"{path}.attention.normed"
    )
    inner = steps.linear_gelu(g, attended, f"{path}.ffn.up", f"{path}.ffn.gelu")
    return steps.linear_add_norm(g, inner, attended, f"{path}.ffn.down", f"{path}.ffn.norm", f"{path}.out")


def _first_row(g: GraphBuilder, x: ir.Value) -> ir.Value:
    first, one, axis = (
        g.constant(f"cls.{n}", np.array([v], np.int64)) for n, v in (("first", 0), ("end", 1), ("axis", 1))
    )
    return g.op("Slice", [x, first, one, axis], "cls.row")


def _drop_row_axis(g: GraphBuilder, x: ir.Value) -> ir.Value:
    return g.op("Squeeze", [x, g.constant("cls.axis", np.array([1], np.int64))], OUTPUT)


def _mean(g: GraphBuilder, x: ir.Value, attention_mask: ir.Value) -> ir.Value:
    """Mean over the tokens, as sentence-transformers' Pooling computes it."""
    axis = g.constant("pooling.axis", np.array([1], np.int64))
    last = g.constant("pooling.last_axis", np.array([-1], np.int64))
    weights = g.op("Cast", [attention_mask], "pooling.weights", to=ir.DataType.FLOAT)
    column = g.op("Unsqueeze", [weights, last], "pooling.column")
    total = g.op("ReduceSum", [g.op("Mul", [x, column], "pooling.tokens"), axis], "pooling.sum", keepdims=0)
    count = g.op("ReduceSum", [weights, axis], "pooling.count", keepdims=1)
    return g.op("Div", [total, count], OUTPUT)
