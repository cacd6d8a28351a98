"""Packed graphs, which onnxruntime runs on CUDA alone, by their operators' documented meaning in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from mexma_export.checkpoint.checkpoint import load_checkpoint
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.graph.encoder import OUTPUT, write_encoder
from mexma_export.graph.weights import write_weights
from mexma_export.parity.figures import compare, worst_rows
from mexma_export.parity.reference import load_reference
from mexma_runtime.backends.gpu.layouts import PackedLayout, Shape
from mexma_runtime.bundle.manifest import TextEntry
from mexma_runtime.types import Dialect, Pooling, Precision, Ragged, Vectors

HIDDEN, HEADS = 64, 4
Floats = NDArray[Any]


class SkipLayerNormalization(OpRun):
    """LayerNorm(input + skip + bias), statistics in fp32."""

    op_domain = "com.microsoft"

    def _run(self, x: Floats, skip: Floats, gamma: Floats, beta: Floats, bias: Floats | None = None, **how: Any) -> Any:
        total = x.astype(np.float32) + skip + (0 if bias is None else bias)
        centred = total - total.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + how["epsilon"])
        return ((scaled * gamma + beta).astype(x.dtype),)


class BiasGelu(OpRun):
    """gelu(input + bias), by erf."""

    op_domain = "com.microsoft"

    def _run(self, x: Floats, bias: Floats) -> Any:
        value = (x + bias).astype(np.float64)
        return ((value * 0.5 * (1 + np.vectorize(math.erf)(value / math.sqrt(2)))).astype(x.dtype),)


class PackedMultiHeadAttention(OpRun):
    """softmax(q k^T / sqrt(head size)) v within each sentence of `cumulative_sequence_length`; other rows are NaN.

    Without keys and values, the queries are all three: `(tokens, heads, 3, head size)`.
    """

    op_domain = "com.microsoft"

    def _run(
        self, q: Floats, k: Floats | None, v: Floats | None, bias: Floats | None, *offsets: Floats, **how: Any
    ) -> Any:
        token_offset, bounds = offsets
        assert token_offset.shape[0] + 1 == len(bounds)
        assert np.diff(bounds).max() <= token_offset.shape[1]
        if k is None or v is None:
            assert q.shape[1:3] == (how["num_heads"], 3)
            q, k, v = (q[:, :, part].reshape(len(q), -1) for part in range(3))
        biases = np.split(np.zeros(3, np.float32) if bias is None else bias, 3)
        out = np.full_like(q, np.nan)
        heads = [
            (x.astype(np.float32) + b).reshape(len(x), how["num_heads"], -1).swapaxes(0, 1)
            for x, b in zip((q, k, v), biases, strict=True)
        ]
        for start, end in pairwise(bounds):
            query, key, value = (x[:, start:end] for x in heads)
            scores = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1])
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf))
            context = weights / weights.sum(axis=-1, keepdims=True) @ value
            out[start:end] = context.swapaxes(0, 1).reshape(end - start, q.shape[1])
        return (out,)


class SimplifiedLayerNormalization(OpRun):
    """x / sqrt(mean of its squares) * scale."""

    op_domain = ""

    def _run(self, x: Floats, scale: Floats, **how: Any) -> Any:
        return ((x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + how["epsilon"]) * scale).astype(x.dtype),)


OPERATORS = [SimplifiedLayerNormalization, SkipLayerNormalization, BiasGelu, PackedMultiHeadAttention]


def make_rows() -> Ragged:
    random = np.random.default_rng(5)
    rows = [[0, *random.integers(4, 8000, length - 1)] for length in (5, 1, 2, 37, 120)]
    return Ragged.from_sequences([*rows, [0, 70, 1, 80, 1, 1, 90, 2]])


ROWS = make_rows()
Embed = Callable[..., Vectors]


@pytest.fixture(scope="module")
def embed(tiny_checkpoint: Path, tiny_bert_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Embed:
    """`embed(family, pooling, precision, rows, shape, normalize=False)`: a packed graph, run in a bucket of `shape`."""
    folder = tmp_path_factory.mktemp("packed")
    folders = (tiny_checkpoint, tiny_bert_checkpoint)
    checkpoints = {path.name: load_checkpoint(resolve_source(str(path))) for path in folders}

    @cache
    def evaluator(family: str, pooling: Pooling, precision: Precision) -> ReferenceEvaluator:
        checkpoint = checkpoints[family]
        weights = write_weights(checkpoint, precision, folder / f"{family}.{precision}")
        weights.written.rename(folder / weights.name)
        model = write_encoder(
            checkpoint.config, dict(weights.tensors), dialect=Dialect.PACKED, precision=precision, pooling=pooling
        )
        path = folder / f"{family}.{pooling}.{precision}.onnx"
        ir.save(model, path)
        return ReferenceEvaluator(onnx.load(path), new_ops=OPERATORS)

    def run(
        family: str, pooling: Pooling, precision: Precision, rows: Ragged, shape: Shape, *, normalize: bool = False
    ) -> Vectors:
        config = checkpoints[family].config
        text = TextEntry(
            tokenizer="",
            max_tokens=config.max_tokens,
            max_tokens_source="",
            lower_case=False,
            padding_id=config.padding_id,
            position_scheme=config.position_scheme,
        )
        layout = PackedLayout(text)
        arrays = {name: np.zeros(spec.shape, spec.dtype) for name, spec in layout.specs(shape).items()}
        layout.fill(rows, arrays, normalize=normalize)
        offsets = {"token_offset": np.zeros((shape.n_sentences, shape.longest), np.int32)}
        (vectors,) = evaluator(family, pooling, precision).run([OUTPUT], arrays | offsets)
        return np.asarray(vectors, dtype=np.float32)[: len(rows)]

    return run


Expect = Callable[[str, Pooling], Vectors]


@pytest.fixture(scope="module")
def expect(tiny_checkpoint: Path, tiny_bert_checkpoint: Path) -> Expect:
    """transformers' vectors of ROWS, each sentence by itself."""
    folders = {path.name: path for path in (tiny_checkpoint, tiny_bert_checkpoint)}

    @cache
    def vectors(family: str, pooling: Pooling) -> Vectors:
        with load_reference(folders[family], pooling=pooling, normalize=False, max_tokens=512) as reference:
            return reference.encode_ids(ROWS, batch_size=1)

    return vectors


def exact(rows: Ragged) -> Shape:
    return Shape(n_sentences=len(rows), longest=int(rows.lengths.max()), n_tokens=rows.ids.size)


@pytest.mark.parametrize("family", ["tiny", "tiny-bert"])
@pytest.mark.parametrize("pooling", list(Pooling))
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_vectors_are_those_of_transformers_in_every_bucket(
    family: str, pooling: Pooling, precision: Precision, embed: Embed, expect: Expect
) -> None:
    expected = expect(family, pooling)
    cosine, difference = (1 - 1e-9, 1e-5) if precision is Precision.FP32 else (1 - 1e-5, 1e-2)
    one_by_one = [ROWS.take(np.array([row])) for row in range(len(ROWS))]
    found = {
        "exact": embed(family, pooling, precision, ROWS, exact(ROWS)),
        "room": embed(family, pooling, precision, ROWS, Shape(n_sentences=9, longest=128, n_tokens=256)),
        "alone": np.concatenate([embed(family, pooling, precision, row, exact(row)) for row in one_by_one]),
    }
    for where, vectors in found.items():
        figures = compare(vectors, expected)
        worst = f"{where}: {worst_rows(vectors, expected, 1)}"
        assert figures.cosine_min >= cosine, worst
        assert figures.max_abs_difference <= difference, worst


@pytest.mark.parametrize("pooling", list(Pooling))
def test_the_graph_gives_vectors_length_1_where_asked_to(pooling: Pooling, embed: Embed) -> None:
    shape = Shape(n_sentences=9, longest=128, n_tokens=256)
    plain = embed("tiny", pooling, Precision.FP32, ROWS, shape)
    unit = embed("tiny", pooling, Precision.FP32, ROWS, shape, normalize=True)
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=1e-6, atol=1e-7)
