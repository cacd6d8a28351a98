"""Text to token ids, exactly as the reference does it: tokenizer.json without its padding, cut at the token limit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Tokenizer, normalizers

from mexma_runtime.errors import BundleError, InputError, TextTooLongError, UsageError
from mexma_runtime.text.split_rules import split_rules
from mexma_runtime.text.truncation import TextCutter, encode_batch, require_whole
from mexma_runtime.types import Ragged

CHARS_PER_TOKEN = 16
"""Texts of up to this many characters for each token that is kept are tokenized whole."""
MAX_BATCH_CHARS = 1 << 20
MAX_WHOLE_CHARS = 1 << 20
"""Of a text that cannot be cut, so many characters are tokenized at once: some 300 MB of memory."""


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """What a tokenizer.json does not say."""

    max_tokens: int
    """Special tokens included."""
    lower_case: bool
    """sentence-transformers' do_lower_case: lower-case first, unless the tokenizer's own normaliser has Lowercase."""

    max_whole_chars: int = MAX_WHOLE_CHARS
    """Most characters that are tokenized at once, of a text that cannot be cut without changing its ids."""

    def __post_init__(self) -> None:
        if self.max_whole_chars < 1:
            raise UsageError(f"max_whole_chars: expected 1 or more, got {self.max_whole_chars}")
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens: expected at least 1, got {self.max_tokens}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokenized:
    """The ids of some texts, in their order."""

    ragged: Ragged
    """Special tokens included."""
    truncated: NDArray[np.bool_]
    """bool `(n,)`: which texts had more tokens than were kept."""


class TextTokenizer:
    """Tokenizes texts. Thread-safe; many texts at once use tokenizers' own threads, a single one does not."""

    def __init__(self, path: Path, spec: TokenizerSpec, *, content: bytes | None = None) -> None:
        """Read the tokenizer.json at `path`, or what is to stand there, `content`; `spec` replaces its truncation.

        BundleError: not a tokenizer that can be read, or not one that this class reproduces.
        """
        self._tokenizer = _load(path, content)
        if spec.lower_case:
            self._tokenizer.normalizer = _with_lowercase(self._tokenizer.normalizer)
        self._prefix, self._suffix = _special_tokens(self._tokenizer, path)
        self._max_tokens = spec.max_tokens
        if spec.max_tokens < self.least_tokens:
            reason = f"a text has {self.least_tokens - 1} special tokens and needs room for one more, but max_tokens is"
            raise BundleError(path, f"{reason} {spec.max_tokens}")
        self._whole_chars, self._max_whole_chars = CHARS_PER_TOKEN * spec.max_tokens, spec.max_whole_chars
        self._cutter = lru_cache(partial(_cutter, self._tokenizer, self._whole_chars, self._max_whole_chars))

    def copy(self) -> Tokenizer:
        """The tokenizers library's own object, which neither cuts nor pads, for a caller to do with as they like."""
        return Tokenizer.from_str(self._tokenizer.to_str())

    @property
    def least_tokens(self) -> int:
        """The special tokens of a text and one more."""
        return len(self._prefix) + len(self._suffix) + 1

    def may_refuse(self, texts: Sequence[str], *, truncate: bool) -> bool:
        """Whether one of `texts`, which are valid Unicode, may turn out to be no input when it is tokenized."""
        may_be_empty = not self._prefix and not self._suffix
        return not truncate or may_be_empty or max(map(len, texts), default=0) > self._max_whole_chars

    def encode(
        self, texts: Sequence[str], *, truncate: bool = True, first_index: int = 0, max_tokens: int | None = None
    ) -> Tokenized:
        """Token ids of `texts`, which are str, special tokens included, at most `max_tokens` each.

        `max_tokens`: the tokenizer's own limit where it is None, and never more. Errors give the position in `texts`
        plus `first_index`. InputError: not valid Unicode, or more than `max_whole_chars` characters that cannot be cut.
        TextTooLongError: a text has too many tokens and `truncate` is False.
        """
        long = {row for row, text in enumerate(texts) if len(text) > self._whole_chars}
        if long and (cutter := self._cutter()) is not None:
            rows = self._cut(texts, long, cutter, first_index)
        else:
            for index in sorted(long):
                require_whole(len(texts[index]), self._max_whole_chars, first_index + index)
            rows = self._whole(texts, first_index)

        limit = min(self._max_tokens, max_tokens or self._max_tokens)
        if len(rows) == 1 and len(rows[0]) <= limit:
            ids = np.array(rows[0], dtype=np.int32)
            ragged = Ragged(ids=ids, offsets=np.array([0, ids.size], dtype=np.int64))
            return Tokenized(ragged=ragged, truncated=np.zeros(1, dtype=np.bool_))
        truncated = np.fromiter(map(len, rows), np.int64, len(rows)) > limit
        for row in np.flatnonzero(truncated):
            if not truncate:
                reason = f"more than {limit} tokens, the special ones included, which is the model's limit"
                raise TextTooLongError(f"{reason}: split it, or allow truncation", index=first_index + int(row))
            rows[row] = rows[row][: limit - len(self._suffix)] + self._suffix
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=offsets[1:])
        ids = np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(offsets[-1]))
        return Tokenized(ragged=Ragged(ids=ids, offsets=offsets), truncated=truncated)

    def _whole(self, texts: Sequence[str], first_index: int) -> list[list[int]]:
        """Rows of ids, special tokens included; at least one too many where there are more than `max_tokens`."""
        try:
            if len(texts) == 1:  # a batch, even of one, waits for the thread pool and all that others gave it to do
                return [self._tokenizer.encode(texts[0]).ids]
            rows: list[list[int]] = []
            for batch in _batches(texts):
                rows += [encoding.ids[: self._max_tokens + 1] for encoding in encode_batch(self._tokenizer, batch)]
            return rows
        except TypeError:
            refuse_surrogates(texts, first_index)
            raise

    def _cut(self, texts: Sequence[str], long: set[int], cutter: TextCutter, first_index: int) -> list[list[int]]:
        """The same without tokenizing the whole of the texts in the rows `long`."""
        refuse_surrogates(texts, first_index)
        short = iter(self._whole([text for row, text in enumerate(texts) if row not in long], first_index))
        return [
            [
                *self._prefix,
                *cutter.first_ids(text, self._max_tokens - self.least_tokens + 2, index=first_index + row),
                *self._suffix,
            ]
            if row in long
            else next(short)
            for row, text in enumerate(texts)
        ]


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Parts of `texts` of about a million characters: tokenizers takes some 100 bytes for each while it works."""
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts))) // MAX_BATCH_CHARS
    edges = [0, *(np.flatnonzero(np.diff(ends)) + 1).tolist(), len(texts)]
    for start, end in itertools.pairwise(edges):
        yield texts[start:end]


def _load(path: Path, content: bytes | None) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes() if content is None else content)
    except Exception as error:  # noqa: BLE001 - tokenizers raises nothing more precise
        raise BundleError(
            path, f"tokenizers {tokenizers.__version__} cannot read it ({error}): upgrade tokenizers, or export again"
        ) from None
    if tokenizer.truncation is not None and tokenizer.truncation["direction"] != "right":
        raise BundleError(path, "its truncation removes the beginning of a text: only the end can be cut off")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _cutter(tokenizer: Tokenizer, step: int, max_whole_chars: int) -> TextCutter | None:
    rules = split_rules(tokenizer)
    return None if rules is None else TextCutter(tokenizer, rules, step=step, max_whole_chars=max_whole_chars)


def _with_lowercase(normalizer: normalizers.Normalizer | None) -> normalizers.Normalizer:
    if normalizer is None:
        return normalizers.Lowercase()
    steps = list(normalizer) if isinstance(normalizer, normalizers.Sequence) else [normalizer]  # type: ignore[call-overload]
    if any(isinstance(step, normalizers.Lowercase) for step in steps):
        return normalizer
    return normalizers.Sequence([normalizers.Lowercase(), *steps])


def _special_tokens(tokenizer: Tokenizer, path: Path) -> tuple[list[int], list[int]]:
    """The ids that are put before and after those of every text."""
    for text in ("a", "1", "."):
        content = tokenizer.encode(text, add_special_tokens=False).ids
        encoding = tokenizer.encode(text)
        ids, mask = encoding.ids, encoding.special_tokens_mask
        n_prefix = len(list(itertools.takewhile(bool, mask)))
        end = n_prefix + len(content)
        if content and ids[n_prefix:end] == content and all(mask[end:]):
            return ids[:n_prefix], ids[end:]
    raise BundleError(path, "it does not put special tokens around a text's own: not supported")


def refuse_surrogates(texts: Sequence[str], first_index: int) -> None:
    """InputError for the first text, counted from `first_index`, that is not valid Unicode."""
    for index, text in enumerate(texts, first_index):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            reason = f"character {error.start} is {text[error.start]!a}, half of a surrogate pair: not valid Unicode"
            raise InputError(f"{reason}; decode its bytes again, in their own encoding", index=index) from None
