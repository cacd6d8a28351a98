"""Around a library that takes padded batches of ids: tokens of texts, batches sorted by length, pooling."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mexma_benchmarks.adapters.protocol import Model, Task, Vectors

BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class Padded:
    """Sentences of token ids, side by side."""

    ids: NDArray[np.int64]
    """int64 `(n, longest)`, padded on the right."""
    mask: NDArray[np.int64]
    """int64 `(n, longest)`: 1 where there is a token, 0 where there is padding."""


def load_tokenizer(task: Task) -> Tokenizer:
    """The checkpoint's tokenizer.json without its padding, cutting at the task's limit instead of its own."""
    tokenizer = Tokenizer.from_file(str(Path(task.tokenizer, "tokenizer.json")))
    tokenizer.no_padding()
    tokenizer.enable_truncation(task.max_tokens)
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts, special ones included."""
    if len(texts) == 1:  # a batch, even of one, waits for the thread pool
        return [tokenizer.encode(texts[0]).ids]
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def read_padding_id(task: Task) -> int:
    """The id of padding, by the checkpoint's config.json."""
    return int(json.loads(Path(task.checkpoint, "config.json").read_text(encoding="utf-8"))["pad_token_id"])


def length_sorted(sentences: Sequence[Sequence[int]], batch_size: int = BATCH_SIZE) -> list[NDArray[np.intp]]:
    """The rows of each batch, the longest sentences first; every row once."""
    order = np.argsort([-len(ids) for ids in sentences], kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def cut_by_budget(lengths: NDArray[np.int64], max_padded_tokens: int) -> list[NDArray[np.intp]]:
    """The rows of each batch, the longest sentences first; none has more tokens, padding included, but a single one."""
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        n = max(1, max_padded_tokens // int(lengths[order[start]]))
        batches.append(order[start : start + n])
        start += n
    return batches


def pad(sentences: Sequence[Sequence[int]], padding_id: int) -> Padded:
    """A batch of `sentences`, padded to its longest."""
    lengths = np.array([len(ids) for ids in sentences])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, padding_id, dtype=np.int64)
    ids[mask] = np.concatenate(sentences)
    return Padded(ids=ids, mask=mask.astype(np.int64))


def pool(tokens: NDArray[np.float32], mask: NDArray[np.int64], task: Task) -> Vectors:
    """A new array `(n, dim)` of the last layer's `tokens`, float32 `(n, longest, dim)`, as the task says."""
    if task.pooling == "cls":
        vectors = tokens[:, 0]
    else:
        weights = mask[:, None, :].astype(np.float32)
        vectors = (weights @ tokens)[:, 0] / weights.sum(axis=2)
    if task.is_normalized:
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.array(vectors, dtype=np.float32)


class PaddedModel(Model):
    """A model whose library computes padded batches of ids and leaves the rest to its users."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._tokenizer = load_tokenizer(task)
        self._padding_id = read_padding_id(task)
        self._stages_s = {"tokenize": 0.0, "copy": 0.0, "compute": 0.0}

    def last_layer(self, batch: Padded) -> NDArray[np.float32]:
        """The last layer's tokens, float32 `(n, longest, dim)`; padding may have any number there."""
        raise NotImplementedError

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Embed texts in batches of 32, the longest first."""
        with self._counted("tokenize"):
            sentences = tokenize(self._tokenizer, texts)
        batches = [(rows, self._embed([sentences[row] for row in rows])) for rows in length_sorted(sentences)]
        vectors = np.empty((len(texts), batches[0][1].shape[1]), dtype=np.float32)
        for rows, part in batches:
            vectors[rows] = part
        return vectors

    def encode_ids(self, sentences: Sequence[Sequence[int]]) -> Vectors:
        """Embed one batch of token ids."""
        return self._embed(sentences)

    def stages_s(self) -> dict[str, float]:
        """Seconds in the tokenizer, in making batches and pooling, and in the library."""
        return dict(self._stages_s)

    def _embed(self, sentences: Sequence[Sequence[int]]) -> Vectors:
        with self._counted("copy"):
            batch = pad(sentences, self._padding_id)
        with self._counted("compute"):
            tokens = self.last_layer(batch)
        with self._counted("copy"):
            return pool(tokens, batch.mask, self._task)

    @contextmanager
    def _counted(self, stage: str) -> Iterator[None]:
        start_s = time.perf_counter()
        yield
        self._stages_s[stage] += time.perf_counter() - start_s
