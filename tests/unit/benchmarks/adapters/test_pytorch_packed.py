from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu, scaled_dot_product_attention

from mexma_benchmarks.adapters import pytorch_packed
from mexma_benchmarks.adapters.protocol import NotOfferedError, Task, Vectors
from mexma_benchmarks.adapters.pytorch_packed import open_model
from mexma_benchmarks.adapters.texts import load_tokenizer, tokenize
from mexma_export.parity.reference import load_reference
from mexma_runtime.types import Pooling

TEXTS = ["the ferry leaves at noon", "rain", "a text that is cut " * 20, "", "padding <pad> within a text", "rain"]
MakeTask = Callable[..., Task]
ERF, TANH = 5e-6, 2e-3
"""Tolerances of a vector's error, relative to its length, by the form of GELU that was computed."""


@pytest.fixture(scope="session")
def task_of(task_of: MakeTask) -> MakeTask:
    return functools.partial(task_of, dtype="fp32", compile=False)


def masked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, *_: Any
) -> torch.Tensor:
    """What varlen_attn computes: each token sees those of its own sentence."""
    sentence = torch.bucketize(torch.arange(len(query)), starts[1:], right=True)
    query, key, value = (rows.transpose(0, 1) for rows in (query, key, value))
    attended = scaled_dot_product_attention(query, key, value, attn_mask=sentence[:, None] == sentence[None])
    return attended.transpose(0, 1)


def relative_errors(vectors: Vectors, task: Task) -> Vectors:
    pooling = Pooling(task.pooling)
    with load_reference(
        Path(task.checkpoint), pooling=pooling, normalize=task.is_normalized, max_tokens=task.max_tokens
    ) as reference:
        expected = reference.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == expected.shape
    errors: Vectors = np.linalg.norm(vectors - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return errors


@pytest.mark.parametrize("max_batch_tokens", [30, 65_536])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_it_gives_the_vectors_of_the_reference(
    task_of: MakeTask, checkpoint: Path, pooling: str, max_batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one batch, and in several, of which one is a sentence alone."""
    monkeypatch.setattr(pytorch_packed, "MAX_BATCH_TOKENS", max_batch_tokens)
    task = task_of(checkpoint, pooling=pooling)
    model = open_model(task, kernel=masked_attention)
    vectors = model.encode(TEXTS)
    assert relative_errors(vectors, task).max() <= ERF

    sentences = tokenize(load_tokenizer(task), TEXTS)
    ids, lengths = np.concatenate(sentences).astype(np.int32), np.array([len(ids) for ids in sentences])
    np.testing.assert_array_equal(model.encode_ragged(ids, lengths), vectors)
    np.testing.assert_allclose(model.encode_ids(sentences[2:3]), vectors[2:3], atol=1e-5)


def test_the_form_of_gelu_that_a_gpu_computes_stays_near(
    task_of: MakeTask, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the product's epilogue is the tanh form: its error is between the two tolerances."""

    def with_tanh(bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *, use_gelu: bool) -> torch.Tensor:
        assert use_gelu
        return gelu(torch.addmm(bias, x, weight), approximate="tanh")

    monkeypatch.setattr(torch, "_addmm_activation", with_tanh)
    task = task_of(checkpoint)
    errors = relative_errors(open_model(task, kernel=masked_attention).encode(TEXTS), task)
    assert ERF < errors.max() <= TANH


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_it_is_compiled_for_all_layers_and_lengths_at_once(task_of: MakeTask, tiny_checkpoint: Path) -> None:
    task = task_of(tiny_checkpoint, compile=True)
    torch.compiler.reset()
    stats = torch._dynamo.utils.counters["stats"]
    stats.clear()
    model = open_model(task, kernel=masked_attention)
    for row in range(len(TEXTS)):
        model.encode(TEXTS[row : row + 1])
    assert relative_errors(model.encode(TEXTS), task).max() <= ERF
    assert stats["unique_graphs"] in (1, 2)  # one sentence may be a case of its own


def test_a_graph_takes_new_ids_each_time_and_one_sentence_of_its_length(task_of: MakeTask, checkpoint: Path) -> None:
    """Captured by running it again, as there is no CUDA here."""
    captured = []

    def capture(call: Any) -> Any:
        captured.append(call)
        return call

    task = task_of(checkpoint, graph_length=24)
    model = open_model(task, kernel=masked_attention, capture=capture)
    plain = open_model(task_of(checkpoint), kernel=masked_attention)
    assert len(captured) == 1
    first, second = tokenize(load_tokenizer(task), ["a text that is cut " * 20, "padding <pad> " * 20])
    for ids in (first, second):
        np.testing.assert_allclose(model.encode_ids([ids]), plain.encode_ids([ids]), atol=1e-6)
    for batch in ([first, second], [first[:5]]):
        with pytest.raises(NotOfferedError, match="its graph is of one sentence of 24 tokens"):
            model.encode_ids(batch)
    with pytest.raises(NotOfferedError, match="its graph is of one sentence"):
        model.encode_ragged(np.array([0, 2], dtype=np.int32), np.array([2]))
    assert relative_errors(model.encode(TEXTS), task).max() <= ERF


def test_what_pytorch_lacks_is_said(task_of: MakeTask, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotOfferedError, match="takes fp16 and bf16 on a CUDA GPU: asked for float32 on cpu"):
        open_model(task_of(tiny_checkpoint))
    with pytest.raises(NotOfferedError, match="CUDA graphs are for CUDA GPUs: asked for cpu"):
        open_model(task_of(tiny_checkpoint, graph_length=8), kernel=masked_attention)
    monkeypatch.delattr(torch, "_addmm_activation")
    with pytest.raises(NotOfferedError, match="has no product with GELU in it"):
        open_model(task_of(tiny_checkpoint), kernel=masked_attention)


@pytest.mark.gpu
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_on_a_gpu(task_of: MakeTask, checkpoint: Path, pooling: str) -> None:
    task = task_of(checkpoint, pooling=pooling, device="cuda", dtype="fp16", compile=True)
    model = open_model(task)
    assert relative_errors(model.encode(TEXTS), task).max() <= 1e-2
    [ids] = tokenize(load_tokenizer(task), TEXTS[2:3])
    task.options["graph_length"] = len(ids)
    np.testing.assert_allclose(open_model(task).encode_ids([ids]), model.encode_ids([ids]), atol=2e-2)
