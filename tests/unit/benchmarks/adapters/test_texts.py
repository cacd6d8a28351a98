from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mexma_benchmarks.adapters.protocol import Task
from mexma_benchmarks.adapters.texts import Padded, PaddedModel, length_sorted, load_tokenizer, pad, tokenize
from mexma_export.parity.reference import load_reference
from mexma_runtime.text.tokenizer import TextTokenizer, TokenizerSpec
from mexma_runtime.types import Pooling

MAX_TOKENS = 24
TEXTS = ["one", "", "a text that is cut " * 20, *(f"sentence {'of words ' * (i % 7)}{i}" for i in range(40))]

sentences_of_ids = st.lists(st.lists(st.integers(3, 99), min_size=1, max_size=9), min_size=1, max_size=70)


def task_of(checkpoint: Path) -> Task:
    return Task(
        checkpoint=str(checkpoint),
        tokenizer=str(checkpoint),
        pooling="cls",
        is_normalized=False,
        max_tokens=MAX_TOKENS,
        n_threads=1,
        device="cpu",
        folder="",
        first_text="one",
    )


class Transformers(PaddedModel):
    """transformers' own model; its result is good until the next, and large where there is padding."""

    def __init__(self, task: Task) -> None:
        import transformers

        super().__init__(task)
        load: Callable[..., Any] = transformers.AutoModel.from_pretrained
        self._model = load(task.checkpoint, add_pooling_layer=False).eval()
        self._buffer = np.empty(0, dtype=np.float32)

    def last_layer(self, batch: Padded) -> NDArray[np.float32]:
        ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
        with torch.inference_mode():
            tokens = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
        tokens[batch.mask == 0] = 1e6
        self._buffer.fill(np.nan)
        self._buffer = tokens
        return self._buffer


@pytest.mark.parametrize("checkpoint", ["tiny_checkpoint", "tiny_bert_checkpoint"])
def test_ids_are_those_of_the_runtime_whatever_the_tokenizers_own_limits(
    checkpoint: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path: Path = request.getfixturevalue(checkpoint) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=128)
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    sentences = tokenize(load_tokenizer(task_of(tmp_path)), TEXTS)

    expected = TextTokenizer(path, TokenizerSpec(max_tokens=MAX_TOKENS, lower_case=False)).encode(TEXTS).ragged
    assert sentences == [expected[row].tolist() for row in range(len(expected))]
    assert max(map(len, sentences)) == MAX_TOKENS
    assert tokenize(load_tokenizer(task_of(tmp_path)), TEXTS[2:3]) == sentences[2:3]


@given(sentences=sentences_of_ids, batch_size=st.integers(1, 40))
def test_batches_hold_every_row_once_and_the_longest_first(sentences: list[list[int]], batch_size: int) -> None:
    batches = length_sorted(sentences, batch_size)

    rows = np.concatenate(batches).tolist()
    assert sorted(rows) == list(range(len(sentences)))
    lengths = [len(sentences[row]) for row in rows]
    assert lengths == sorted(lengths, reverse=True)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert len(batches[-1]) <= batch_size


@given(sentences=sentences_of_ids)
def test_padding_is_on_the_right_and_masked(sentences: list[list[int]]) -> None:
    batch = pad(sentences, padding_id=1)

    assert batch.ids.dtype == batch.mask.dtype == np.int64
    assert batch.ids.shape == batch.mask.shape == (len(sentences), max(map(len, sentences)))
    for ids, row, mask in zip(sentences, batch.ids, batch.mask, strict=True):
        assert row[: len(ids)].tolist() == ids
        assert set(row[len(ids) :].tolist()) <= {1}
        assert mask.tolist() == [1] * len(ids) + [0] * (len(row) - len(ids))


@pytest.mark.parametrize("checkpoint", ["tiny_checkpoint", "tiny_bert_checkpoint"])
@pytest.mark.parametrize(("pooling", "is_normalized"), [("cls", False), ("mean", False), ("mean", True)])
def test_vectors_are_those_of_the_reference_in_input_order(
    checkpoint: str, pooling: str, is_normalized: bool, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(checkpoint)
    model = Transformers(replace(task_of(folder), pooling=pooling, is_normalized=is_normalized))
    ids = [[0, 7, 8, 2], [0, 9, 11, 2]]

    vectors, of_one, of_ids = model.encode(TEXTS), model.encode(TEXTS[2:3]), model.encode_ids(ids)

    with load_reference(folder, pooling=Pooling(pooling), normalize=is_normalized, max_tokens=MAX_TOKENS) as reference:
        expected, expected_of_ids = reference.encode(TEXTS), reference.encode_ids(ids)
    np.testing.assert_allclose(vectors, expected, atol=2e-6)
    np.testing.assert_allclose(of_one, expected[2:3], atol=2e-6)
    np.testing.assert_allclose(of_ids, expected_of_ids, atol=2e-6)
    assert vectors.dtype == of_ids.dtype == np.float32


def test_vectors_outlive_the_librarys_buffer(tiny_checkpoint: Path) -> None:
    model = Transformers(task_of(tiny_checkpoint))
    vectors = model.encode_ids([[0, 7, 2]])
    model.encode_ids([[0, 9, 2]])
    assert np.isfinite(vectors).all()


def test_stages_are_told_apart(tiny_checkpoint: Path) -> None:
    model = Transformers(task_of(tiny_checkpoint))
    assert model.stages_s() == {"tokenize": 0, "copy": 0, "compute": 0}
    model.encode_ids([[0, 7, 2]])
    stages_s = model.stages_s()
    assert stages_s["tokenize"] == 0
    assert min(stages_s["copy"], stages_s["compute"]) > 0
    model.encode(TEXTS)
    assert model.stages_s()["tokenize"] > 0
