from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from mexma_benchmarks.adapters import pytorch
from mexma_benchmarks.adapters.protocol import NotOfferedError, Task, Vectors, unpack
from mexma_benchmarks.adapters.pytorch import open_model
from mexma_benchmarks.adapters.texts import cut_by_budget, load_tokenizer, tokenize
from mexma_benchmarks.adapters.unpadded import varlen_kernel
from mexma_benchmarks.run.process import SubjectError, SubjectProcess
from mexma_export.parity.reference import load_reference
from mexma_runtime.types import Pooling

TEXTS = [
    "the ferry leaves at noon",
    "rain",
    "a text that is cut " * 20,
    "",
    "padding <pad> within a text",
    "two words",
    "rain",
]
MakeTask = Callable[..., Task]
TOLERANCES = {"fp32": 5e-6, "fp16": 1e-2, "bf16": 5e-2}
"""Of a vector's error, relative to its length."""


def reference_vectors(task: Task) -> Vectors:
    pooling = Pooling(task.pooling)
    with load_reference(
        Path(task.checkpoint), pooling=pooling, normalize=task.is_normalized, max_tokens=task.max_tokens
    ) as reference:
        return reference.encode(TEXTS)


def assert_close(vectors: Vectors, expected: Vectors, tolerance: float) -> None:
    assert vectors.dtype == np.float32
    assert vectors.shape == expected.shape
    errors = relative_errors(vectors, expected)
    assert errors.max() <= tolerance, errors


def relative_errors(vectors: Vectors, expected: Vectors) -> Vectors:
    errors: Vectors = np.linalg.norm(vectors - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return errors


def a_sentence_at_a_time(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_starts: torch.Tensor,
    key_starts: torch.Tensor,
    longest_query: int,
    longest_key: int,
) -> torch.Tensor:
    """What varlen_attn computes, on any device and of any type."""
    assert query_starts.dtype == torch.int32
    starts = query_starts.tolist()
    assert key_starts.tolist() == starts
    assert longest_query == longest_key == max(np.diff(starts))
    # (heads, tokens, head size), which is what PyTorch's own attention takes
    query, key, value = (rows.transpose(0, 1) for rows in (query, key, value))
    sentences = [slice(start, end) for start, end in pairwise(starts)]
    attended = [scaled_dot_product_attention(query[:, s], key[:, s], value[:, s]) for s in sentences]
    return torch.cat(attended, dim=1).transpose(0, 1)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("is_sorted", [True, False])
def test_fp32_gives_the_vectors_of_the_reference_in_input_order(
    task_of: MakeTask, checkpoint: Path, pooling: str, is_sorted: bool
) -> None:
    task = task_of(checkpoint, pooling=pooling, is_sorted=is_sorted, batch_size=3)
    assert_close(open_model(task).encode(TEXTS), reference_vectors(task), TOLERANCES["fp32"])


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_smaller_type_is_really_used_and_stays_near(task_of: MakeTask, checkpoint: Path, dtype: str) -> None:
    task = task_of(checkpoint, dtype=dtype)
    vectors, expected = open_model(task).encode(TEXTS), reference_vectors(task)
    assert_close(vectors, expected, TOLERANCES[dtype])
    assert relative_errors(vectors, expected).min() > TOLERANCES["fp32"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_it_gives_the_same(task_of: MakeTask, tiny_checkpoint: Path) -> None:
    task = task_of(tiny_checkpoint, compile=True)
    torch.compiler.reset()
    stats = torch._dynamo.utils.counters["stats"]
    stats.clear()
    assert_close(open_model(task).encode(TEXTS), reference_vectors(task), TOLERANCES["fp32"])
    assert stats["unique_graphs"] > 0


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_unpadded_gives_the_same(task_of: MakeTask, checkpoint: Path, pooling: str) -> None:
    task = task_of(checkpoint, pooling=pooling, is_sorted=True, batch_size=4, unpadded=True)
    model = open_model(task, kernel=a_sentence_at_a_time)
    assert_close(model.encode(TEXTS), reference_vectors(task), TOLERANCES["fp32"])
    assert model.batching == "batches of 4, sorted by length, unpadded"


@pytest.mark.parametrize("unpadded", [True, False])
def test_ids_give_the_vectors_of_their_text(task_of: MakeTask, checkpoint: Path, unpadded: bool) -> None:
    task = task_of(checkpoint, unpadded=unpadded)
    model = open_model(task, kernel=a_sentence_at_a_time)
    [ids] = tokenize(load_tokenizer(task), [TEXTS[2]])
    assert len(ids) == task.max_tokens
    assert_close(model.encode_ids([ids, ids]), reference_vectors(task)[[2, 2]], TOLERANCES["fp32"])


@pytest.mark.parametrize("unpadded", [True, False])
def test_ragged_ids_give_the_vectors_of_their_texts(
    task_of: MakeTask, checkpoint: Path, unpadded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(checkpoint, unpadded=unpadded)
    monkeypatch.setattr(pytorch, "MAX_BATCH_TOKENS", 2 * task.max_tokens)
    model = open_model(task, kernel=a_sentence_at_a_time)
    sentences = tokenize(load_tokenizer(task), TEXTS)
    ids, lengths = np.concatenate(sentences).astype(np.int32), np.array([len(ids) for ids in sentences])
    assert_close(model.encode_ragged(ids, lengths), reference_vectors(task), TOLERANCES["fp32"])


@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=50), budget=st.integers(1, 300))
def test_batches_of_a_budget_hold_every_row_once_and_no_more_than_it(lengths: list[int], budget: int) -> None:
    batches = cut_by_budget(np.array(lengths), budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    longest = [max(lengths[row] for row in rows) for rows in batches]
    assert longest == sorted(longest, reverse=True)
    assert all(len(rows) * most <= budget or len(rows) == 1 for rows, most in zip(batches, longest, strict=True))


def test_stages_are_told_apart(task_of: MakeTask, tiny_checkpoint: Path) -> None:
    model = open_model(task_of(tiny_checkpoint))
    assert model.stages_s() == {"tokenize": 0, "copy": 0, "compute": 0}
    model.encode_ids([[0, 5, 2]])
    stages_s = model.stages_s()
    assert stages_s["tokenize"] == 0
    assert min(stages_s["copy"], stages_s["compute"]) > 0
    model.encode(TEXTS)
    assert model.stages_s()["tokenize"] > 0


def test_unpadded_is_refused_where_pytorch_has_no_kernel(task_of: MakeTask, tiny_checkpoint: Path) -> None:
    with pytest.raises(NotOfferedError, match="takes fp16 and bf16 on a CUDA GPU: asked for float16 on cpu"):
        open_model(task_of(tiny_checkpoint, dtype="fp16", unpadded=True))
    with pytest.raises(NotOfferedError, match="asked for float32 on cuda:0"):
        varlen_kernel(torch.device("cuda:0"), torch.float32)


def test_pytorchs_kernel_is_called_as_it_expects() -> None:
    parameters = inspect.signature(varlen_kernel(torch.device("cuda"), torch.float16)).parameters
    assert list(parameters)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error(task_of: MakeTask, tiny_checkpoint: Path) -> None:
    with pytest.raises(RuntimeError, match=r"asked for cuda:1: PyTorch .* finds no CUDA GPU"):
        open_model(task_of(tiny_checkpoint, device="cuda:1"))


@pytest.mark.gpu
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize(
    "options", [{}, {"unpadded": True}, {"compile": True}, {"unpadded": True, "compile": True}], ids=str
)
def test_on_a_gpu(task_of: MakeTask, checkpoint: Path, pooling: str, options: dict[str, bool]) -> None:
    task = task_of(checkpoint, pooling=pooling, device="cuda", dtype="fp16", is_sorted=True, batch_size=3, **options)
    model = open_model(task)
    assert_close(model.encode(TEXTS), reference_vectors(task), TOLERANCES["fp16"])
    assert model.provider == torch.cuda.get_device_name()


def test_as_a_subject_in_its_own_process(task_of: MakeTask, tiny_checkpoint: Path) -> None:
    task = task_of(tiny_checkpoint, pooling="cls", is_sorted=True)
    with SubjectProcess("pytorch", task) as process:
        assert process.ready.versions.keys() == {"torch", "transformers"}
        assert process.ready.provider == "CPU"
        assert_close(
            unpack(process.ask({"do": "vectors", "texts": TEXTS})), reference_vectors(task), TOLERANCES["fp32"]
        )
        assert process.ask({"do": "encode", "texts": TEXTS})["ms"] > 0
    with pytest.raises(SubjectError, match="unpadded attention in PyTorch"):
        _ = SubjectProcess("pytorch", task_of(tiny_checkpoint, unpadded=True)).ready
