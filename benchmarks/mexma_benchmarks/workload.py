"""The sentences that are timed: real lengths from a file, or a stated distribution of lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mexma_export.corpus import sample_corpus
from mexma_runtime import Encoder
from mexma_runtime.errors import UsageError

N_SPECIAL = 2
LOG_MEAN, LOG_SIGMA = 2.366, 0.4125
"""A log-normal whose mean is 11.6 and whose 95th percentile is 21: what Tatoeba's sentences have in XLM-R's tokens."""
SHORTEST, LONGEST = 3, 64


def draw_lengths(n: int, seed: int = 0) -> NDArray[np.int64]:
    """int64 `(n,)`: tokens of each of `n` sentences, special ones included, in an order without pattern."""
    drawn = np.random.default_rng(seed).lognormal(LOG_MEAN, LOG_SIGMA, n)
    return np.clip(np.rint(drawn), SHORTEST, LONGEST).astype(np.int64)


def write_texts(lengths: NDArray[np.int64], words: Sequence[str], seed: int = 0) -> list[str]:
    """A text for each length, of random `words` that are one token each."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(words, size=length - N_SPECIAL)) for length in lengths]


def single_token_words(encoder: Encoder) -> list[str]:
    """The words of the package's sample that are one token of the encoder's vocabulary each."""
    words = sorted({word.casefold() for text in sample_corpus().texts for word in text.split() if word.isalpha()})
    ids = encoder.tokenize(words).ragged
    known = {words[row]: int(ids[int(row)][1]) for row in np.flatnonzero(ids.lengths == 1 + N_SPECIAL)}
    times = np.bincount(list(known.values()), minlength=1)
    # Words that share an id are unknown ones.
    found = [word for word, token in known.items() if times[token] == 1]
    if not found:
        raise UsageError("no word of the built-in sample is one token of this vocabulary: give real text with --corpus")
    return found


def drawn_texts(encoder: Encoder, n: int) -> list[str]:
    """`n` texts of drawn lengths, in words of the encoder's vocabulary."""
    return write_texts(draw_lengths(n), single_token_words(encoder))


def describe_lengths(lengths: NDArray[np.int64]) -> str:
    """Mean and 95th percentile, for a report."""
    return f"mean {lengths.mean():.1f} tokens, 95th percentile {np.percentile(lengths, 95):.0f}"
