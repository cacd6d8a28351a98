"""A bundle small enough to make by hand: one layer, eight numbers, a Unigram tokenizer of letters."""

from __future__ import annotations

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
from mexma_runtime.bundle import sha256_of
from mexma_runtime.manifest import (
    MANIFEST_NAME,
    SCHEMA,
    EngineEntry,
    FileEntry,
    Manifest,
    ModelEntry,
    PositionScheme,
    Setting,
    TextEntry,
)
from mexma_runtime.types import Dialect, Precision, Ragged, Vectors

DIM, MAX_TOKENS, PADDING_ID = 8, 16, 1
VOCABULARY = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *string.ascii_lowercase, "\u2581the", "\u2581a", "and"]
WEIGHTS = "weights.bin"

MakeBundle = Callable[..., Path]
ReferenceVectors = Callable[[Ragged], Vectors]


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


def write_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(models.Unigram([(token, -float(i)) for i, token in enumerate(VOCABULARY)], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.save(str(path))


def write_bundle(folder: Path, *, requires: str = "1.16", normalize: bool = False, **text: Any) -> Path:
    folder.mkdir(parents=True)
    names = {dialect: f"model.{dialect}.fp32.onnx" for dialect in Dialect}
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
            requires={"onnxruntime": requires},
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


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that tests only read."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def encoder(bundle_folder: Path) -> Encoder:
    return Encoder.load(bundle_folder, n_threads=1)


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
