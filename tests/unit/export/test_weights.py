from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from mexma_export.checkpoint import Checkpoint, load_checkpoint
from mexma_export.sources import resolve_source
from mexma_export.tensors import whole
from mexma_export.weights import ALIGNMENT, WeightsFile, weights_bytes, write_weights
from mexma_runtime.bundle import sha256_of
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
