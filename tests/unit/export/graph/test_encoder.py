"""Graphs against transformers' own models: dialects, precisions, poolings, families, short to longest, padded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from mexma_export.checkpoint.checkpoint import Checkpoint, load_checkpoint
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.checkpoint.tensors import whole
from mexma_export.graph.encoder import LAYER_INPUTS, OUTPUT, layer_taps, write_encoder, write_layer
from mexma_export.graph.layouts import PADDED_INPUTS
from mexma_export.graph.weights import WeightsFile, write_int8_tables, write_weights
from mexma_export.parity.figures import compare, worst_rows
from mexma_export.parity.reference import load_reference
from mexma_export.quantize.layers import layer_tensors
from mexma_runtime.backends.padding import padded_inputs
from mexma_runtime.bundle.manifest import TextEntry
from mexma_runtime.types import PADDED_DIALECTS, Dialect, Pooling, Precision, Ragged, Vectors

FAMILIES = ["tiny", "tiny-bert"]
LENGTHS = (1, 2, 3, 37, 511, 512)
HIDDEN = 64


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far vectors of one precision may be from those of fp32 on the same weights, entries being of order 1."""

    cosine_min: float
    max_abs_difference: float


TOLERANCES = {
    Precision.FP32: Tolerance(cosine_min=1 - 1e-9, max_abs_difference=1e-5),
    Precision.INT8: Tolerance(cosine_min=1 - 1e-9, max_abs_difference=1e-5),
    Precision.FP16: Tolerance(cosine_min=1 - 1e-5, max_abs_difference=1e-2),
}


def assert_close(vectors: Vectors, expected: Vectors, precision: Precision) -> None:
    """Hold float32 `(n, dim)` against `expected`; a failure names the worst row."""
    tolerance, figures = TOLERANCES[precision], compare(vectors, expected)
    message = f"worst of {len(ROWS)} rows: {worst_rows(vectors, expected, 1)}, lengths {ROWS.lengths}"
    assert figures.cosine_min >= tolerance.cosine_min, message
    assert figures.max_abs_difference <= tolerance.max_abs_difference, message


def make_rows() -> Ragged:
    """Random ids of every length, and one sentence with padding's own id in its middle, as "<pad>" in a text gives."""
    random = np.random.default_rng(3)
    rows = [[0, *random.integers(4, 8000, length - 1)] for length in LENGTHS]
    return Ragged.from_sequences([*rows, [0, 70, 1, 80, 1, 1, 90, 2]])


ROWS = make_rows()


@dataclass(frozen=True, kw_only=True)
class Written:
    """One graph on the disk."""

    path: Path
    checkpoint: Checkpoint

    @property
    def session(self) -> Any:
        return ort.InferenceSession(str(self.path), providers=["CPUExecutionProvider"])

    def inputs(self, rows: Ragged) -> dict[str, NDArray[np.int32]]:
        config = self.checkpoint.config
        text = TextEntry(
            tokenizer="",
            max_tokens=config.max_tokens,
            max_tokens_source="",
            lower_case=False,
            padding_id=config.padding_id,
            position_scheme=config.position_scheme,
        )
        return padded_inputs(rows, text)

    def all_values(self, rows: Ragged) -> dict[str, NDArray[Any]]:
        """Every value of the graph by its name, computed as written: without the runtime's own fusions."""
        model = onnx.load(self.path, load_external_data=False)
        names = [name for node in model.graph.node for name in node.output]
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        path = self.path.with_suffix(".all.onnx")
        onnx.save(model, path)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return dict(zip(names, session.run(names, self.inputs(rows)), strict=True))


Write = Callable[[str, Pooling, Dialect, Precision], Written]
Expect = Callable[[str, Pooling], Vectors]


@pytest.fixture(scope="module")
def checkpoints(tiny_checkpoint: Path, tiny_bert_checkpoint: Path) -> dict[str, Checkpoint]:
    folders = (tiny_checkpoint, tiny_bert_checkpoint)
    return {folder.name: load_checkpoint(resolve_source(str(folder))) for folder in folders}


@pytest.fixture(scope="module")
def write(checkpoints: dict[str, Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Write:
    folder = tmp_path_factory.mktemp("graphs")

    @cache
    def weights(family: str, precision: Precision) -> WeightsFile:
        written = write_weights(checkpoints[family], precision, folder / f"{family}.{precision}")
        return replace(written, written=written.written.rename(folder / written.name))

    @cache
    def graph(family: str, pooling: Pooling, dialect: Dialect, precision: Precision) -> Written:
        checkpoint = checkpoints[family]
        model = write_encoder(
            checkpoint.config,
            weights(family, Precision.FP32 if precision is Precision.INT8 else precision).tensors,
            dialect=dialect,
            precision=precision,
            pooling=pooling,
        )
        path = folder / f"{family}.{pooling}.{dialect}.{precision}.onnx"
        ir.save(model, path)
        return Written(path=path, checkpoint=checkpoint)

    return graph


@pytest.fixture(scope="module")
def expect(checkpoints: dict[str, Checkpoint]) -> Expect:
    """transformers' vectors of ROWS, each sentence by itself and so without padding."""

    @cache
    def vectors(family: str, pooling: Pooling) -> Vectors:
        folder = checkpoints[family].source.folder
        with load_reference(folder, pooling=pooling, normalize=False, max_tokens=512) as reference:
            return reference.encode_ids(ROWS, batch_size=1)

    return vectors


every_dialect = pytest.mark.parametrize("dialect", PADDED_DIALECTS)
every_precision = pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
"""With products in float even in int8: what an int8 graph has around them is the matter here."""
every_pooling = pytest.mark.parametrize("pooling", list(Pooling))
every_family = pytest.mark.parametrize("family", FAMILIES)


@every_dialect
@every_precision
@every_pooling
@every_family
def test_vectors_are_those_of_transformers(
    family: str, pooling: Pooling, precision: Precision, dialect: Dialect, write: Write, expect: Expect
) -> None:
    graph, expected = write(family, pooling, dialect, precision), expect(family, pooling)
    session = graph.session
    alone = [session.run([OUTPUT], graph.inputs(ROWS.take(np.array([i]))))[0] for i in range(len(ROWS))]
    assert_close(np.concatenate(alone), expected, precision)
    padded = session.run([OUTPUT], graph.inputs(ROWS))[0]
    assert padded.dtype == np.float32
    assert_close(padded, expected, precision)
    assert_close(padded, np.concatenate(alone), precision)


@every_family
@every_pooling
@every_precision
def test_both_dialects_give_the_same_values_under_the_same_names(
    family: str, pooling: Pooling, precision: Precision, write: Write
) -> None:
    short = ROWS.take(np.array([2, 3, 6]))
    portable = write(family, pooling, Dialect.PORTABLE, precision).all_values(short)
    fused = write(family, pooling, Dialect.FUSED, precision).all_values(short)
    both = portable.keys() & fused.keys()
    steps = ("attention.query.product", "attention.out", "attention.normed", "ffn.up.product", "ffn.gelu", "out")
    assert both >= {f"layer.{layer}.{step}" for layer in range(3) for step in steps} | {"embeddings.out", OUTPUT}
    is_token = short.lengths[:, np.newaxis] > np.arange(short.lengths.max())
    for name in both:
        a, b = portable[name].astype(np.float32), fused[name].astype(np.float32)
        assert a.shape == b.shape, name
        if a.shape[1:2] == is_token.shape[1:]:  # what stands on padding is nobody's business
            a, b = a[is_token], b[is_token]
        allowed = 1e-2 if precision is Precision.FP16 else 1e-5
        assert np.abs(a - b).max() <= allowed * max(1, np.abs(a).max()), name


@every_dialect
@every_family
def test_the_last_layer_computes_the_cls_row_alone(family: str, dialect: Dialect, write: Write) -> None:
    short = ROWS.take(np.array([1, 3]))
    rows = {}
    for pooling in Pooling:
        values = write(family, pooling, dialect, Precision.FP32).all_values(short)
        rows[pooling] = {
            step: [values[f"layer.{layer}.{step}"].shape[1] for layer in range(3)]
            for step in ("attention.query.product", "attention.key.product", "attention.out", "ffn.gelu", "out")
        }
    assert rows[Pooling.CLS] == {
        "attention.query.product": [37, 37, 1],
        "attention.key.product": [37, 37, 37],
        "attention.out": [37, 37, 1],
        "ffn.gelu": [37, 37, 1],
        "out": [37, 37, 1],
    }
    assert all(n_rows == [37] * 3 for n_rows in rows[Pooling.MEAN].values())


@every_pooling
@every_precision
@every_family
def test_the_portable_dialect_is_standard_onnx(
    family: str, precision: Precision, pooling: Pooling, write: Write
) -> None:
    path = write(family, pooling, Dialect.PORTABLE, precision).path
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    assert [entry.domain for entry in model.opset_import] == [""]


@every_dialect
@every_precision
def test_inputs_and_output_are_the_same_whatever_is_inside(
    dialect: Dialect, precision: Precision, write: Write
) -> None:
    session = write("tiny", Pooling.CLS, dialect, precision).session
    inputs = [(value.name, value.type, value.shape) for value in session.get_inputs()]
    assert inputs == [(name, "tensor(int32)", ["batch", "length"]) for name in PADDED_INPUTS]
    outputs = [(value.name, value.type, value.shape) for value in session.get_outputs()]
    assert outputs == [(OUTPUT, "tensor(float)", ["batch", HIDDEN])]


def test_fp16_has_layer_norm_in_fp32_and_attention_in_one_type_as_tensorrt_fuses_it(write: Write) -> None:
    graph = write("tiny", Pooling.MEAN, Dialect.PORTABLE, Precision.FP16)
    model = onnx.shape_inference.infer_shapes(onnx.load(graph.path))
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    softmax = [node for node in model.graph.node if node.op_type == "Softmax"]
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    assert (len(softmax), len(norms)) == (3, 7)
    assert {kinds[node.input[0]] for node in softmax} == {onnx.TensorProto.FLOAT16}
    of_attention = {node.op_type for node in model.graph.node if node.name.startswith("layer.0.attention.")}
    assert of_attention == {"Add", "LayerNormalization", "MatMul", "Mul", "Reshape", "Softmax", "Transpose"}
    stash_types = {attribute.i for node in norms for attribute in node.attribute if attribute.name == "stash_type"}
    assert stash_types == {onnx.TensorProto.FLOAT}
    assert kinds["layer.0.ffn.gelu"] == onnx.TensorProto.FLOAT16


@every_dialect
@every_precision
def test_matrices_are_external_and_no_name_is_used_twice(dialect: Dialect, precision: Precision, write: Write) -> None:
    path = write("tiny", Pooling.CLS, dialect, precision).path
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        is_external = tensor.data_location == onnx.TensorProto.EXTERNAL
        assert is_external == (len(tensor.dims) == 2), tensor.name
    names = [*(t.name for t in model.graph.initializer), *(n for node in model.graph.node for n in node.output)]
    assert len(set(names)) == len(names)
    assert path.stat().st_size < 50_000


@every_dialect
@every_family
def test_words_in_int8_are_turned_into_floats(
    family: str, dialect: Dialect, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """A table in int8 beside weights in fp32, as int8 engines have it."""
    checkpoint = checkpoints[family]
    weights = write_weights(checkpoint, Precision.FP32, tmp_path / "floats")
    tables = write_int8_tables(checkpoint, tmp_path / "tables")
    for written in (weights, tables):
        written.written.rename(tmp_path / written.name)
    tensors = {**weights.tensors, **tables.tensors}
    model = write_encoder(checkpoint.config, tensors, dialect=dialect, precision=Precision.INT8, pooling=Pooling.MEAN)
    path = tmp_path / "int8.onnx"
    ir.save(model, path)
    graph, short = Written(path=path, checkpoint=checkpoint), ROWS.take(np.array([1, 3]))
    found, ids = graph.all_values(short)["embeddings.words"], graph.inputs(short)["input_ids"]
    expected = whole(checkpoint.tensors["embeddings.word"])[ids]
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= np.abs(expected).max() / 254 * 1.001
    assert not np.array_equal(found, expected)


@every_dialect
@every_pooling
@every_family
def test_a_layer_by_itself_gives_what_it_gives_in_the_whole_graph(
    family: str, pooling: Pooling, dialect: Dialect, write: Write, checkpoints: dict[str, Checkpoint]
) -> None:
    graph, one = write(family, pooling, dialect, Precision.FP32), ROWS.take(np.array([3]))
    values = graph.all_values(one)
    for layer in range(3):
        tensors = {name: ir.tensor(array) for name, array in layer_tensors(checkpoints[family], layer).items()}
        model = write_layer(checkpoints[family].config, tensors, layer, dialect=dialect, pooling=pooling)
        session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
        before = values[f"layer.{layer - 1}.out" if layer else "embeddings.out"]
        inputs = dict(zip(LAYER_INPUTS, (before, np.ones((1, 37), np.int32)), strict=True))
        for name, found in zip(layer_taps(layer), session.run(list(layer_taps(layer)), inputs), strict=True):
            assert found.shape == values[name].shape
            assert np.abs(found - values[name]).max() < 1e-5, name
