"""The text that ranges are taken from: the package's own or a user's, as token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mexma_export.checkpoint.checkpoint import Checkpoint
from mexma_export.corpus.corpus import Corpus, corpus_of, read_corpus
from mexma_export.corpus.sample import load_calibration_text
from mexma_runtime.errors import UsageError
from mexma_runtime.text.tokenizer import TextTokenizer, TokenizerSpec
from mexma_runtime.types import Ragged

MIN_TEXTS, MIN_TOKENS = 64, 1_000
"""Fewer say too little of the ranges that other text will reach."""
MAX_UNKNOWN = 0.1
"""Share of a text's tokens that may be unknown; beyond it the text says nothing of the model."""
MIN_ENGLISH_SHARE = 0.75
"""Bytes a token, to English's. A language of fewer is in pieces: the tokenizer was not made for it, and what the model
computes from it is like nothing that it computes from the languages it knows."""
MAX_LEFT_OUT = 0.5
"""Share of a user's texts that may be left out before the file is refused."""
MAX_TOKENS = 65_536
"""Longer text is thinned evenly: a model of full size takes minutes for so many, and 300 MB."""
BATCH_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Calibration text, as the model reads it."""

    name: str
    sha256: str
    """Of the texts that are used, one a line."""
    ragged: Ragged
    n_left_out: int
    """Texts of more unknown tokens than MAX_UNKNOWN, and those of the package's own whose language is in pieces."""

    @property
    def n_texts(self) -> int:
        """Texts that are used."""
        return len(self.ragged)

    @property
    def n_tokens(self) -> int:
        """Their tokens, special ones included."""
        return int(self.ragged.ids.size)

    def batches(self) -> Iterator[NDArray[np.int64]]:
        """Rows of one length each, in a fixed order: int64 `(n,)`."""
        lengths = self.ragged.lengths
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            yield from np.split(rows, range(0, rows.size, max(1, BATCH_TOKENS // int(length)))[1:])


def shipped_corpus() -> Corpus:
    """The package's calibration text: its languages, short queries to long paragraphs; no line of it judges engines."""
    return corpus_of("mexma-runtime calibration text", load_calibration_text())


def load_calibration(checkpoint: Checkpoint, path: Path | None = None) -> Calibration:
    """The texts of `path` (text or .tsv; None: the package's own) as ids of `checkpoint`'s tokenizer.

    Texts that are mostly unknown to the tokenizer are left out, and of the package's own those in languages that it
    breaks to pieces. UsageError where too little is left to calibrate on.
    """
    corpus = read_corpus(path) if path else shipped_corpus()
    where = str(path) if path else corpus.name
    settings = checkpoint.settings
    tokenizer = TextTokenizer(
        checkpoint.source.tokenizer,
        TokenizerSpec(max_tokens=settings.max_tokens, lower_case=settings.lower_case),
        content=checkpoint.tokenizer,
    )
    ragged = tokenizer.encode([settings.default_prompt + text for text in corpus.texts]).ragged
    unknown = _unknown_shares(ragged, _unknown_id(checkpoint.tokenizer))
    is_known = unknown <= MAX_UNKNOWN
    if not path:
        n_around = int(tokenizer.encode([settings.default_prompt]).ragged.lengths[0])
        is_whole = ragged.lengths < settings.max_tokens
        is_known &= _in_languages_known(corpus, ragged.lengths - n_around, is_whole)
    kept = np.flatnonzero(is_known)
    n_left_out = len(ragged) - kept.size
    known = ragged.take(kept)
    if known.ids.size > MAX_TOKENS:
        n_thinned = max(MIN_TEXTS, int(kept.size * MAX_TOKENS / known.ids.size))
        kept = kept[np.linspace(0, kept.size - 1, min(n_thinned, kept.size)).round().astype(np.int64)]
        known = ragged.take(kept)
    if path and n_left_out > MAX_LEFT_OUT * len(ragged):
        raise UsageError(
            f"{where}: {n_left_out} of {len(ragged)} texts have more than {MAX_UNKNOWN:.0%} tokens that are unknown "
            "to the model's tokenizer: calibrate on text in languages that the model reads"
        )
    if kept.size < MIN_TEXTS or known.ids.size < MIN_TOKENS:
        raise UsageError(
            f"{where}: expected at least {MIN_TEXTS} texts and {MIN_TOKENS} tokens to calibrate on, got "
            f"{kept.size} texts and {known.ids.size} tokens ({n_left_out} texts left out as unknown to the tokenizer): "
            "give more text, or leave --calibration out to use the package's own"
        )
    used = "\n".join(corpus.texts[row] for row in kept)
    return Calibration(
        name=corpus.name,
        sha256=hashlib.sha256(used.encode()).hexdigest(),
        ragged=known,
        n_left_out=n_left_out,
    )


def _unknown_id(content: bytes) -> int | None:
    tokenizer = Tokenizer.from_buffer(content)
    candidates = (getattr(tokenizer.model, "unk_token", None), "<unk>", "[UNK]")
    ids = [tokenizer.token_to_id(token) for token in candidates if token]
    return next((number for number in ids if number is not None), None)


def _unknown_shares(ragged: Ragged, unknown_id: int | None) -> NDArray[np.float64]:
    """float64 `(n,)`: the share of unknown tokens in each text."""
    counts = np.add.reduceat((ragged.ids == unknown_id).astype(np.int64), ragged.offsets[:-1])
    return counts / ragged.lengths


def _in_languages_known(corpus: Corpus, n_tokens: NDArray[np.int64], is_whole: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """bool `(n,)`: whether tokens of the text's language hold MIN_ENGLISH_SHARE, over its texts that are not cut."""
    assert corpus.languages is not None
    languages, index = np.unique(corpus.languages, return_inverse=True)
    n_bytes = np.array([len(text.encode()) for text in corpus.texts])
    held = np.bincount(index, n_bytes * is_whole) / np.maximum(np.bincount(index, n_tokens * is_whole), 1)
    is_known: NDArray[np.bool_] = held >= MIN_ENGLISH_SHARE * held[languages == "en"]
    return is_known[index]
