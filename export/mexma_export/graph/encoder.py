"""The model on one page: embeddings, layers, the last layer for the rows that pooling needs, pooling.

Post-LayerNorm Transformer encoder as in XLM-RoBERTa (Conneau et al., 2020, arXiv:1911.02116) and BERT.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from mexma_export.checkpoint.config import ModelConfig
from mexma_export.graph.builder import GraphBuilder
from mexma_export.graph.dialects import Bounds, Steps, steps_of
from mexma_export.graph.layouts import Tokens, layout_of
from mexma_export.graph.linear import FLOAT_PRODUCTS, Products
from mexma_runtime.types import Dialect, Pooling, Precision

LAYER_INPUTS = ("hidden", "attention_mask")
"""Of `write_layer`."""
OUTPUT = "sentence_embedding"
"""float32 `(batch, hidden)` in every precision, pooled; not normalised, but in packed graphs that are told to."""


def write_encoder(
    config: ModelConfig,
    weights: Mapping[str, ir.TensorProtocol],
    *,
    dialect: Dialect,
    precision: Precision,
    pooling: Pooling,
    products: Products = FLOAT_PRODUCTS,
    floats: Precision | None = None,
) -> ir.Model:
    """The graph of one engine over `weights` (names and layout: weights.write_weights), layers by `products`.

    `floats`: the number format of what is not quantized; None: `precision`, or fp32.
    """
    g = GraphBuilder(weights, floats=floats or precision)
    layout, steps = layout_of(dialect, config), steps_of(dialect, precision, config, products)
    tokens = layout.declare(g)
    bounds = steps.bounds(g, tokens)

    x = _embeddings(g, steps, tokens)
    for layer in range(config.n_layers - 1):
        x = _layer(g, steps, x, x, bounds, f"layer.{layer}")
    # CLS pooling reads one row, so the last layer computes that row alone: residual and FFN of one token.
    rows = layout.first_rows(g, x, tokens) if pooling is Pooling.CLS else x
    x = _layer(g, steps, rows, x, bounds, f"layer.{config.n_layers - 1}")

    output = layout.pooled(g, x, tokens, pooling, OUTPUT)
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
    g = GraphBuilder(weights, floats=Precision.FP32)
    layout, steps = layout_of(dialect, config), steps_of(dialect, Precision.FP32, config, products)
    x = g.input(LAYER_INPUTS[0], ["batch", "length", config.hidden_size], ir.DataType.FLOAT)
    tokens = Tokens(inputs={LAYER_INPUTS[1]: g.input(LAYER_INPUTS[1], ["batch", "length"])})
    bounds = steps.bounds(g, tokens)
    is_pooled_row = pooling is Pooling.CLS and layer == config.n_layers - 1
    _layer(g, steps, layout.first_rows(g, x, tokens) if is_pooled_row else x, x, bounds, f"layer.{layer}")
    taps: dict[ir.Value, list[int | str]] = {
        g.value(name): ["batch", "rows", f"{name}.width"] for name in layer_taps(layer)
    }
    return g.finish(taps, name=f"{config.family}.layer.{layer}")


def layer_taps(layer: int) -> tuple[str, str, str, str]:
    """What the attention's output, FFN-up and FFN-down of a layer read, and the layer's own output."""
    path = f"layer.{layer}"
    return f"{path}.attention.out", f"{path}.attention.normed", f"{path}.ffn.gelu", f"{path}.out"


def _embeddings(g: GraphBuilder, steps: Steps, tokens: Tokens) -> ir.Value:
    """LayerNorm(word + position); the one token type's row is part of the position table."""
    words = _word_vectors(g, tokens.ids)
    positions = g.op("Gather", [g.weight("embeddings.position"), tokens.positions], "embeddings.positions", axis=0)
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


def _layer(g: GraphBuilder, steps: Steps, rows: ir.Value, x: ir.Value, bounds: Bounds, path: str) -> ir.Value:
    """One layer, computed for `rows` of `x`."""
    context = steps.attention(g, rows, x, bounds, f"{path}.attention")
    attended = steps.linear_add_norm(
        g, context, rows, f"{path}.attention.output", f"{path}.attention.norm", f"{path}.attention.normed"
    )
    inner = steps.linear_gelu(g, attended, f"{path}.ffn.up", f"{path}.ffn.gelu")
    return steps.linear_add_norm(g, inner, attended, f"{path}.ffn.down", f"{path}.ffn.norm", f"{path}.out")
