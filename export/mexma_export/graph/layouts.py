"""How the tokens of a batch lie: padded to `(batch, length)`, or packed end to end. The graph's inputs, and pooling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from mexma_export.checkpoint.config import ModelConfig
from mexma_export.graph.builder import FUSED_DOMAIN, GraphBuilder
from mexma_runtime.types import Dialect, Pooling

PADDED_INPUTS = ("input_ids", "attention_mask", "position_ids")
"""int32 `(batch, length)` each; the mask is 1 for tokens and 0 for padding, which is on the right."""
SMALLEST_MEAN_SQUARE = 1e-24
"""Added to a vector's mean square before its root: zeros stay zeros, and nothing else notices."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """A graph's inputs by their names."""

    inputs: Mapping[str, ir.Value]

    @property
    def ids(self) -> ir.Value:
        """int32, a token id for each row of the hidden state."""
        return self.inputs["input_ids"]

    @property
    def positions(self) -> ir.Value:
        """int32, as `ids`."""
        return self.inputs["position_ids"]


class Layout(Protocol):
    """One way for tokens to lie."""

    def declare(self, g: GraphBuilder) -> Tokens:
        """The graph's inputs."""

    def first_rows(self, g: GraphBuilder, x: ir.Value, tokens: Tokens) -> ir.Value:
        """The first token's row of each sentence, which is all that CLS pooling reads."""

    def pooled(self, g: GraphBuilder, x: ir.Value, tokens: Tokens, pooling: Pooling, output: str) -> ir.Value:
        """`output`: float32 `(batch, hidden)` from the hidden state, of CLS pooling its first rows."""


class PaddedLayout:
    """Inputs: PADDED_INPUTS. Vectors are as pooled: who reads them may give them length 1."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    def declare(self, g: GraphBuilder) -> Tokens:
        """The inputs of padded graphs: PADDED_INPUTS."""
        return Tokens(inputs={name: g.input(name, ["batch", "length"]) for name in PADDED_INPUTS})

    def first_rows(self, g: GraphBuilder, x: ir.Value, tokens: Tokens) -> ir.Value:
        """`(batch, 1, hidden)`."""
        first, one, axis = (
            g.constant(f"cls.{n}", np.array([v], np.int64)) for n, v in (("first", 0), ("end", 1), ("axis", 1))
        )
        return g.op("Slice", [x, first, one, axis], "cls.row")

    def pooled(self, g: GraphBuilder, x: ir.Value, tokens: Tokens, pooling: Pooling, output: str) -> ir.Value:
        """The first row, or the mean over the tokens as sentence-transformers' Pooling computes it, in fp32."""
        x = _in_fp32(g, x)
        if pooling is Pooling.CLS:
            return g.op("Squeeze", [x, g.constant("cls.axis", np.array([1], np.int64))], output)
        axis = g.constant("pooling.axis", np.array([1], np.int64))
        weights = g.op("Cast", [tokens.inputs["attention_mask"]], "pooling.weights", to=ir.DataType.FLOAT)
        total = self._sum(g, x, weights, axis)
        count = g.op("ReduceSum", [weights, axis], "pooling.count", keepdims=1)
        return g.op("Div", [total, count], output)

    def _sum(self, g: GraphBuilder, x: ir.Value, weights: ir.Value, axis: ir.Value) -> ir.Value:
        if self._dialect is Dialect.PORTABLE and g.float_type is not ir.DataType.FLOAT:
            # For TensorRT, whose compiler for Turing has no matrix product in fp32.
            column = g.op(
                "Unsqueeze", [weights, g.constant("pooling.column.axis", np.array([2], np.int64))], "pooling.column"
            )
            return g.op("ReduceSum", [g.op("Mul", [x, column], "pooling.weighted"), axis], "pooling.sum", keepdims=0)
        # A matrix product, not a sum: onnxruntime's ReduceSum has other last bits for a batch of one, and is slower.
        row = g.op("Unsqueeze", [weights, axis], "pooling.row")
        return g.op("Squeeze", [g.op("MatMul", [row, x], "pooling.sums"), axis], "pooling.sum")


class PackedLayout:
    """All tokens end to end, and where sentences begin; the graph itself gives vectors length 1, where asked to.

    input_ids, position_ids: int32 `(tokens,)`.
    token_offset: int32 `(batch, length)`. PackedMultiHeadAttention takes the batch and the longest length from its
        shape; the kernels that engines are admitted with never read what is in it.
    cumulative_sequence_length: int32 `(batch + 1,)`, where each sentence begins and the last ends.
    first_token: int32 `(batch,)`: where each begins, or any token for what is no sentence.
    normalize: bool `(1,)`.
    """

    def __init__(self, n_heads: int, hidden_size: int) -> None:
        self._n_heads, self._hidden_size = n_heads, hidden_size

    def declare(self, g: GraphBuilder) -> Tokens:
        """The inputs of packed graphs, as the class describes them."""
        inputs = {name: g.input(name, ["tokens"]) for name in ("input_ids", "position_ids")}
        inputs["token_offset"] = g.input("token_offset", ["batch", "length"])
        inputs["cumulative_sequence_length"] = g.input("cumulative_sequence_length", ["bounds"])
        inputs["first_token"] = g.input("first_token", ["batch"])
        inputs["normalize"] = g.input("normalize", [1], ir.DataType.BOOL)
        return Tokens(inputs=inputs)

    def first_rows(self, g: GraphBuilder, x: ir.Value, tokens: Tokens) -> ir.Value:
        """`(batch, hidden)`."""
        return g.op("Gather", [x, tokens.inputs["first_token"]], "cls.row", axis=0)

    def pooled(self, g: GraphBuilder, x: ir.Value, tokens: Tokens, pooling: Pooling, output: str) -> ir.Value:
        """The first rows, or the mean of each sentence's rows; over its length or over 1.

        The mean is attention whose scores are all 0, and so its weights 1 / length: it needs no padding either.
        """
        if pooling is Pooling.MEAN:
            nothing = g.op("Mul", [x, g.number(0)], "pooling.nothing")
            offsets = [tokens.inputs[name] for name in ("token_offset", "cumulative_sequence_length")]
            inputs = [nothing, nothing, x, None, *offsets]
            means = g.op(
                "PackedMultiHeadAttention", inputs, "pooling.means", domain=FUSED_DOMAIN, num_heads=self._n_heads
            )
            x = g.op("Gather", [means, tokens.inputs["first_token"]], "pooling.mean", axis=0)
        x = _in_fp32(g, x)
        # x / sqrt(mean of squares) / sqrt(hidden): one small kernel, where a ReduceL2 takes 46 us on an H200.
        scale = g.constant("pooling.scale", np.full(self._hidden_size, self._hidden_size**-0.5, np.float32))
        unit = g.op("SimplifiedLayerNormalization", [x, scale], "pooling.unit", axis=-1, epsilon=SMALLEST_MEAN_SQUARE)
        return g.op("Where", [tokens.inputs["normalize"], unit, x], output)


def layout_of(dialect: Dialect, config: ModelConfig) -> Layout:
    """How `dialect` lays out tokens."""
    return PackedLayout(config.n_heads, config.hidden_size) if dialect is Dialect.PACKED else PaddedLayout(dialect)


def _in_fp32(g: GraphBuilder, x: ir.Value) -> ir.Value:
    return x if g.float_type is ir.DataType.FLOAT else g.op("Cast", [x], "pooling.fp32", to=ir.DataType.FLOAT)
