"""What is timed: fixed shapes of ids, one text, and texts of real lengths or of a stated distribution of lengths."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mexma_benchmarks.adapters.protocol import ONCE, Turn, ragged_request
from mexma_benchmarks.result.result import Workload
from mexma_export.corpus.corpus import Corpus, sample_corpus
from mexma_runtime.errors import UsageError
from mexma_runtime.types import Ragged

Tokenize = Callable[[Sequence[str]], Ragged]

N_SPECIAL = 2
LOG_MEAN, LOG_SIGMA = 2.366, 0.4125
"""A log-normal whose mean is 11.6 and whose 95th percentile is 21: what Tatoeba's sentences have in XLM-R's tokens."""
SHORTEST, LONGEST = 3, 64
FIRST_ID = 5
"""Below are special tokens, in every vocabulary of the family but BERT's, where it makes no difference to speed."""
SHORT_TEXT = "Where is the nearest station?"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A workload and the request that makes a subject do it once."""

    workload: Workload
    request: Mapping[str, Any]


def shape_job(n: int, length: int, vocab_size: int, turn: Turn = ONCE) -> Job:
    """Ids in: `n` sentences of `length` random ids."""
    ids = np.random.default_rng(0).integers(FIRST_ID, vocab_size, (n, length)).tolist()
    workload = Workload(
        kind="ids", name=f"{n} x {length} tokens", n_sentences=n, n_tokens=n * length, batch=n, length=length
    )
    how = {} if turn == ONCE else {"turn": dataclasses.asdict(turn)}
    return Job(workload=workload, request={"do": "encode_ids", "ids": ids, **how})


def ragged_job(texts: Sequence[str], tokenize: Tokenize, *, name: str) -> Job:
    """Ids in: those of `texts`, which have their prompt already."""
    ragged = tokenize(texts)
    described = f"ids of {name}, {describe_lengths(ragged.lengths)}"
    workload = Workload(kind="ids", name=described, n_sentences=len(ragged), n_tokens=ragged.ids.size)
    return Job(workload=workload, request=ragged_request(ragged.ids, ragged.lengths))


def text_job(texts: Sequence[str], tokenize: Tokenize, *, name: str) -> Job:
    """Texts in, prompts in front of them already."""
    lengths = tokenize(texts).lengths
    one = {"batch": 1, "length": int(lengths[0])} if len(texts) == 1 else {}
    described = f"{name}, {describe_lengths(lengths)}"
    workload = Workload(kind="texts", name=described, n_sentences=len(texts), n_tokens=int(lengths.sum()), **one)
    return Job(workload=workload, request={"do": "encode", "texts": list(texts)})


def thinned(corpus: Corpus, n: int) -> list[str]:
    """At most `n` of its sentences, evenly spread."""
    return list(corpus.texts[:: max(1, len(corpus.texts) // n)][:n])


def draw_lengths(n: int, seed: int = 0) -> NDArray[np.int64]:
    """int64 `(n,)`: tokens of each of `n` sentences, special ones included, in an order without pattern."""
    drawn = np.random.default_rng(seed).lognormal(LOG_MEAN, LOG_SIGMA, n)
    return np.clip(np.rint(drawn), SHORTEST, LONGEST).astype(np.int64)


def write_texts(lengths: NDArray[np.int64], words: Sequence[str], seed: int = 0) -> list[str]:
    """A text for each length, of random `words` that are one token each."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(words, size=length - N_SPECIAL)) for length in lengths]


def single_token_words(tokenize: Tokenize) -> list[str]:
    """The words of the package's sample that are one token of the vocabulary each."""
    words = sorted({word.casefold() for text in sample_corpus().texts for word in text.split() if word.isalpha()})
    ids = tokenize(words)
    known = {words[row]: int(ids[int(row)][1]) for row in np.flatnonzero(ids.lengths == 1 + N_SPECIAL)}
    times = np.bincount(list(known.values()), minlength=1)
    # Words that share an id are unknown ones.
    found = [word for word, token in known.items() if times[token] == 1]
    if not found:
        raise UsageError("no word of the built-in sample is one token of this vocabulary: give real text with --corpus")
    return found


def drawn_texts(tokenize: Tokenize, n: int) -> list[str]:
    """`n` texts of drawn lengths, in words of the vocabulary."""
    return write_texts(draw_lengths(n), single_token_words(tokenize))


def describe_lengths(lengths: NDArray[np.int64]) -> str:
    """Tokens of the sentences, for a report."""
    if len(lengths) == 1:
        return f"{lengths[0]} tokens"
    return f"mean {lengths.mean():.1f} tokens, 95th percentile {np.percentile(lengths, 95):.0f}"
