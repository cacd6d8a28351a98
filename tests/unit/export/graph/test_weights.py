from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from mexma_export.checkpoint.checkpoint import Checkpoint, load_checkpoint
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.checkpoint.tensors import whole
from mexma_export.graph.weights import (
    ALIGNMENT,
    WeightsFile,
    WeightsWriter,
    weights_bytes,
    write_int8_tables,
    write_weights,
)
from mexma_runtime.bundle.bundle import sha256_of
from mexma_runtime.types import Precision

PRECISIONS = [Precision.FP32, Precision.FP16]
TYPES = {Precision.FP32: np.float32, Precision.FP16: np.float16}


@pytest.fixture(params=["tiny_checkpoint", "tiny_bert_checkpoint"])
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    return load_checkpoint(resolve_source(str(request.getfixturevalue(request.param))))


def write(checkpoint: Checkpoint, precision: Precision, folder: Path) -> WeightsFile:
    """Write the weights and give the file its final name, under which its tensors refer to it."""
    weights = write_weights(checkpoint, precision, folder / "new")
    weights.written.rename(folder / weights.name)
    return weights


def read(tensors: Mapping[str, ir.TensorProtocol], name: str, folder: Path) -> NDArray[np.float32]:
    tensor = tensors[name]
    if isinstance(tensor, ir.ExternalTensor):
        tensor.base_dir = folder
    return tensor.numpy()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_tensor_is_the_checkpoints_own(checkpoint: Checkpoint, precision: Precision, tmp_path: Path) -> None:
    tensors = write(checkpoint, precision, tmp_path).tensors
    for name, info in checkpoint.tensors.items():
        if name == "embeddings.token_type":
            continue
        expected = whole(info)
        if name == "embeddings.position":
            expected = expected + whole(checkpoint.tensors["embeddings.token_type"])[0]
        elif not name.startswith("embeddings.") and expected.ndim == 2:
            expected = expected.T
        found = read(tensors, name, tmp_path)
        assert found.dtype == TYPES[precision]
        assert np.array_equal(found, expected.astype(TYPES[precision])), name
        assert isinstance(tensors[name], ir.ExternalTensor) == (expected.ndim == 2)
        assert tuple(tensors[name].shape) == expected.shape
    assert "embeddings.token_type" not in tensors


def test_the_biases_of_one_attention_come_in_one_piece_too(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tensors = write(checkpoint, Precision.FP32, tmp_path).tensors
    for layer in range(3):
        parts = [read(tensors, f"layer.{layer}.attention.{part}.bias", tmp_path) for part in ("query", "key", "value")]
        assert np.array_equal(read(tensors, f"layer.{layer}.attention.bias", tmp_path), np.concatenate(parts))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_size_and_hash_are_told_before_and_after(checkpoint: Checkpoint, precision: Precision, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    path = tmp_path / "new"
    weights = write_weights(checkpoint, precision, path, progress=lambda done, total: calls.append((done, total)))
    assert weights_bytes(checkpoint, precision) == weights.size == path.stat().st_size
    assert weights.sha256 == sha256_of(path)
    assert weights.name == f"weights.{weights.sha256[:16]}.bin"
    assert calls == sorted(calls)
    assert calls[-1] == (weights.size, weights.size)


def test_tensors_begin_on_pages_and_do_not_overlap(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tensors = write(checkpoint, Precision.FP16, tmp_path).tensors.values()
    external = sorted((t for t in tensors if isinstance(t, ir.ExternalTensor)), key=lambda t: t.offset or 0)
    end = 0
    for tensor in external:
        assert tensor.offset is not None
        assert tensor.length is not None
        assert tensor.offset % ALIGNMENT == 0
        assert tensor.offset >= end
        end = tensor.offset + tensor.length
    assert len(external) == 2 + 3 * 6


def test_a_file_that_is_there_is_not_overwritten(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        write_weights(checkpoint, Precision.FP32, tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == b"mine"


def test_the_linear_weights_are_those_of_the_file_turned(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The layout, seen without our own reader: PyTorch's (out, in) becomes (in, out)."""
    tensors = write(load_checkpoint(resolve_source(str(tiny_checkpoint))), Precision.FP32, tmp_path).tensors
    theirs = load_file(tiny_checkpoint / "model.safetensors")["encoder.layer.0.intermediate.dense.weight"]
    assert theirs.shape == (128, 64)
    assert np.array_equal(read(tensors, "layer.0.ffn.up.weight", tmp_path), theirs.T)


def write_tables(checkpoint: Checkpoint, folder: Path, calls: list[tuple[int, int]] | None = None) -> WeightsFile:
    progress = (lambda done, total: calls.append((done, total))) if calls is not None else None
    tables = write_int8_tables(checkpoint, folder / "new", progress=progress)
    tables.written.rename(folder / tables.name)
    return tables


def test_words_in_int8_are_off_by_half_a_scale_of_their_row(checkpoint: Checkpoint, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    tables = write_tables(checkpoint, tmp_path, calls)
    exact = whole(checkpoint.tensors["embeddings.word"])
    integers, scales = (read(tables.tensors, f"embeddings.word{part}", tmp_path) for part in ("", ".scale"))
    assert integers.dtype == np.int8
    assert scales.dtype == np.float32
    assert scales.shape == (len(exact), 1)
    assert np.all(np.abs(integers * scales - exact) <= np.float32(0.50001) * scales)
    assert set(np.abs(integers.astype(int)).max(axis=1)[np.abs(exact).max(axis=1) > 0]) == {127}
    assert calls == sorted(calls)
    assert calls[-1] == (len(exact), len(exact))


def test_the_other_tables_are_those_of_fp32(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tables, floats = write_tables(checkpoint, tmp_path).tensors, write(checkpoint, Precision.FP32, tmp_path).tensors
    others = ("embeddings.position", "embeddings.norm.gamma", "embeddings.norm.beta")
    assert tables.keys() == {"embeddings.word", "embeddings.word.scale", *others}
    for name in others:
        assert np.array_equal(read(tables, name, tmp_path), read(floats, name, tmp_path))


def test_a_row_of_zeros_stays_zero(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """As padding's may be."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][1] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tables = write_tables(load_checkpoint(resolve_source(str(folder))), tmp_path).tensors
    assert not read(tables, "embeddings.word", tmp_path)[1].any()
    assert np.all(read(tables, "embeddings.word.scale", tmp_path) > 0)


def test_tensors_are_written_as_they_come(tmp_path: Path) -> None:
    """Whole or in pieces, of several types, one of them not contiguous."""
    first, second = np.arange(6, dtype=np.int8).reshape(2, 3), np.arange(6, dtype=np.float32).reshape(2, 3).T
    with WeightsWriter(tmp_path / "new") as writer:
        writer.add("first", first)
        writer.add_pieces("second", (3, 2), iter([second[:1], second[1:]]))
        weights = writer.finish({"vector": np.ones(2, np.float32)})
    weights.written.rename(tmp_path / weights.name)
    assert weights.size == writer.size == ALIGNMENT + second.nbytes
    assert weights.sha256 == sha256_of(tmp_path / weights.name)
    for name, expected in (("first", first), ("second", second), ("vector", np.ones(2))):
        found = read(weights.tensors, name, tmp_path)
        assert np.array_equal(found, expected)
        assert found.shape == expected.shape
