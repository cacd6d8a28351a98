"""A bundle small enough to make by hand: one layer, eight numbers, a Unigram tokenizer of letters."""

from __future__ import annotations

import os
import string
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mexma_runtime import Encoder
from mexma_runtime.bundle.bundle import Bundle, sha256_of
from mexma_runtime.bundle.manifest import (
    MANIFEST_NAME,
    SCHEMA,
    EngineEntry,
    FileEntry,
    Manifest,
    ModelEntry,
    PositionScheme,
    ProductMode,
    Quantization,
    QuantizedProduct,
    Setting,
    TextEntry,
)
from mexma_runtime.types import PADDED_DIALECTS, Dialect, Precision, Ragged, Vectors

DIM, MAX_TOKENS, PADDING_ID = 8, 16, 1
VOCABULARY = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *string.ascii_lowercase, "\u2581the", "\u2581a", "and"]
WEIGHTS = "weights.bin"
INT8_WIDTH, INT8_SCALE = 64, 0.01

MakeBundle = Callable[..., Path]
MakeInt8Bundle = Callable[..., Bundle]
Int8Reference = Callable[..., Vectors]
ReferenceVectors = Callable[[Ragged], Vectors]


@pytest.fixture(scope="session")
def resident_bytes() -> Callable[[], int]:
    """What this process holds of the machine's memory now, mapped files included."""
    return lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def weights() -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(7)
    shapes = {"words": (len(VOCABULARY), DIM), "positions": (MAX_TOKENS + 2, DIM), "dense": (DIM, DIM)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_graph(path: Path) -> None:
    """tanh((word + position) @ dense), averaged over the tokens; the weights go to WEIGHTS beside it."""
    axis = numpy_helper.from_array(np.array([1], dtype=np.int64), "axis")
    last = numpy_helper.from_array(np.array([2], dtype=np.int64), "last")
    names = ("input_ids", "attention_mask", "position_ids")
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["words", "input_ids"], ["word"]),
            helper.make_node("Gather", ["positions", "position_ids"], ["position"]),
            helper.make_node("Add", ["word", "position"], ["sum"]),
            helper.make_node("MatMul", ["sum", "dense"], ["product"]),
            helper.make_node("Tanh", ["product"], ["hidden"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["wide_mask"]),
            helper.make_node("Mul", ["hidden", "wide_mask"], ["masked"]),
            helper.make_node("ReduceSum", ["masked", "axis"], ["total"], keepdims=0),
            helper.make_node("ReduceSum", ["wide_mask", "axis"], ["count"], keepdims=0),
            helper.make_node("Div", ["total", "count"], ["sentence_embedding"]),
        ],
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "length"]) for name in names],
        [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", DIM])],
        [axis, last, *(numpy_helper.from_array(array, name) for name, array in weights().items())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(
        model, path, save_as_external_data=True, location=WEIGHTS, size_threshold=100, convert_attribute=False
    )


def int8_weights(bits: int) -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.float32]]:
    """Words `(n, INT8_WIDTH)` from 0 to 2.55, weights `(INT8_WIDTH, INT8_WIDTH)` and their scales.

    Neighbouring weights are large and of one sign: sums of 16 bits cannot hold their products with bytes.
    """
    random = np.random.default_rng(11)
    words = random.uniform(0, 2.55, (len(VOCABULARY), INT8_WIDTH)).astype(np.float32)
    largest = 2 ** (bits - 1) - 1
    signs = random.choice([-1, 1], (INT8_WIDTH // 2, INT8_WIDTH)).repeat(2, axis=0)
    dense = (random.integers(largest * 3 // 4, largest, (INT8_WIDTH, INT8_WIDTH), endpoint=True) * signs).astype(
        np.int8
    )
    return words, dense, random.uniform(0.005, 0.02, INT8_WIDTH).astype(np.float32)


def write_int8_graph(path: Path, mode: ProductMode, bits: int) -> None:
    """word @ dense, averaged over the tokens; all tokens count, and positions do not."""
    words, dense, scales = int8_weights(bits)
    arrays = {
        "words": words,
        "dense": dense,
        "scales": scales,
        "scale": np.float32(INT8_SCALE),
        "zero_point": np.uint8(0),
        "none": np.array([0], dtype=np.int32),
    }
    names = ("input_ids", "attention_mask", "position_ids")
    factor = "quantized" if mode is ProductMode.STATIC else "word"
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["attention_mask", "none"], ["no_mask"]),
            helper.make_node("Mul", ["position_ids", "none"], ["no_position"]),
            helper.make_node("Add", ["input_ids", "no_mask"], ["ids"]),
            helper.make_node("Add", ["ids", "no_position"], ["ids_again"]),
            helper.make_node("Gather", ["words", "ids_again"], ["word"]),
            helper.make_node("QuantizeLinear", ["word", "scale", "zero_point"], ["bytes"]),
            helper.make_node("DequantizeLinear", ["bytes", "scale", "zero_point"], ["quantized"]),
            helper.make_node("DequantizeLinear", ["dense", "scales"], ["weights"], axis=1),
            helper.make_node("MatMul", [factor, "weights"], ["product"]),
            helper.make_node("ReduceMean", ["product"], ["sentence_embedding"], axes=[1], keepdims=0),
        ],
        "tiny_int8",
        [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "length"]) for name in names],
        [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", INT8_WIDTH])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def int8_bundle(folder: Path, mode: ProductMode, *, bits: int = 8, group_size: int | None = None) -> Bundle:
    """A bundle of one int8 engine whose one product is quantized by `mode`; GROUP is up to the backend."""
    write_bundle(folder)
    path = folder / "model.portable.int8.fast.uint8.onnx"
    write_int8_graph(path, mode, bits)
    manifest = Bundle.open(folder).manifest
    product = QuantizedProduct(
        name="dense",
        mode=mode,
        migration=None,
        scale=INT8_SCALE,
        zero_point=0,
        error=0.01,
        error_plain=0.04,
        error_migrated=0.02,
    )
    quantization = Quantization(
        recipe_sha256="0" * 64,
        seed=0,
        calibration="by hand",
        calibration_sha256="0" * 64,
        n_texts=1,
        n_tokens=1,
        weight_bits=bits,
        group_size=group_size,
        products=[product],
    )
    engine = replace(
        next(engine for engine in manifest.engines if engine.dialect is Dialect.PORTABLE),
        name="portable.int8.fast.uint8",
        precision=Precision.INT8,
        recipe="fast",
        activation="uint8",
        file=path.name,
        weights=[],
        quantization=quantization,
    )
    entry = FileEntry(name=path.name, sha256=sha256_of(path), size=path.stat().st_size)
    model = replace(manifest.model, hidden_size=INT8_WIDTH)
    manifest = replace(manifest, model=model, files=[*manifest.files, entry], engines=[engine])
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(folder)


def write_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(models.Unigram([(token, -float(i)) for i, token in enumerate(VOCABULARY)], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.save(str(path))


def write_bundle(
    folder: Path, *, requires: str = "1.16", normalize: bool = False, similarity: str = "cosine", **text: Any
) -> Path:
    folder.mkdir(parents=True)
    names = {dialect: f"model.{dialect}.fp32.onnx" for dialect in PADDED_DIALECTS}
    for name in names.values():
        (folder / WEIGHTS).unlink(missing_ok=True)
        write_graph(folder / name)
    write_tokenizer(folder / "tokenizer.json")
    engines = [
        EngineEntry(
            name=f"{dialect}.fp32",
            dialect=dialect,
            precision=Precision.FP32,
            recipe=None,
            activation=None,
            file=name,
            weights=[WEIGHTS],
            inputs=["input_ids", "attention_mask", "position_ids"],
            output="sentence_embedding",
            requires={"onnxruntime": requires} | ({"openvino": requires} if dialect is Dialect.PORTABLE else {}),
            space="0123456789abcdef",
        )
        for dialect, name in names.items()
    ]
    entry = TextEntry(
        tokenizer="tokenizer.json",
        max_tokens=MAX_TOKENS,
        max_tokens_source="by hand",
        lower_case=False,
        padding_id=PADDING_ID,
        position_scheme=PositionScheme.AFTER_PADDING,
        prompts={"query": "the ", "passage": ""},
    )
    manifest = Manifest(
        schema=SCHEMA,
        writer="by hand",
        model=ModelEntry(
            id="by-hand/tiny",
            revision=None,
            weights_sha256="0" * 64,
            family="xlm-roberta",
            n_layers=1,
            hidden_size=DIM,
            n_heads=1,
            vocab_size=len(VOCABULARY),
        ),
        pooling=Setting(value="mean", source="by hand"),
        normalize=Setting(value="true" if normalize else "false", source="by hand"),
        similarity=Setting(value=similarity, source="by hand"),
        text=replace(entry, **text),
        files=[
            FileEntry(name=path.name, sha256=sha256_of(path), size=path.stat().st_size)
            for path in sorted(folder.iterdir())
        ],
        engines=engines,
    )
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return folder


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """Writes a fresh bundle that a test may change or damage."""
    counter = iter(range(100))
    return lambda **options: write_bundle(tmp_path / f"bundle-{next(counter)}", **options)


@pytest.fixture
def make_int8_bundle(tmp_path: Path) -> MakeInt8Bundle:
    """`int8_bundle` in a fresh folder."""
    counter = iter(range(100))
    return lambda mode, **options: int8_bundle(tmp_path / f"int8-{next(counter)}", mode, **options)


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that tests only read."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def encoder(bundle_folder: Path) -> Encoder:
    return Encoder.load(bundle_folder, n_threads=1)


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """all-MiniLM-L6-v2 in fp32, by onnxruntime."""
    from mexma_export.bundle.pipeline import export
    from mexma_export.bundle.request import ExportRequest
    from mexma_export.checkpoint.sources import resolve_source

    out = tmp_path_factory.mktemp("minilm") / "bundle"
    export(resolve_source(str(minilm_folder)), ExportRequest(out=out, precisions=(Precision.FP32,), check_parity=False))
    return Encoder.load(out)


@pytest.fixture
def reference() -> ReferenceVectors:
    """What the graph computes, in NumPy, a sentence at a time."""
    table = weights()

    def vectors(ragged: Ragged) -> Vectors:
        rows = []
        for row in range(len(ragged)):
            ids, position, positions = ragged[row], PADDING_ID, []
            for token in ids:
                position += int(token != PADDING_ID)
                positions.append(position if token != PADDING_ID else PADDING_ID)
            hidden = np.tanh((table["words"][ids] + table["positions"][positions]) @ table["dense"])
            rows.append(hidden.mean(axis=0))
        return np.array(rows, dtype=np.float32).reshape(len(ragged), DIM)

    return vectors


@pytest.fixture
def int8_reference() -> Int8Reference:
    """What the int8 graph computes, in NumPy, and exactly: of GROUP, with activations that are not quantized."""

    def vectors(ragged: Ragged, bits: int, mode: ProductMode = ProductMode.STATIC) -> Vectors:
        words, dense, scales = int8_weights(bits)
        levels = words / np.float32(INT8_SCALE)
        if mode is ProductMode.STATIC:
            levels = np.clip(np.rint(levels), 0, 255)
        products = (levels.astype(np.float64) @ dense) * (INT8_SCALE * scales.astype(np.float64))
        return np.array([products[ragged[row]].mean(axis=0) for row in range(len(ragged))], dtype=np.float32)

    return vectors
