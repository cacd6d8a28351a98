from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from mexma_export.corpus.corpus import Embed
from mexma_export.parity.invariance import N_ALONE, N_MIXED, N_SHUFFLED, measure_invariance, n_texts_again
from mexma_runtime.types import Vectors

TEXTS = [f"text {i}" for i in range(50)]
LENGTHS = np.random.default_rng(1).permutation(50)
OWN = dict(zip(TEXTS, np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32), strict=True))


def embedder(spoil: str, log: list[list[str]]) -> Embed:
    """Embeds alike among all batch-mates but one kind: `alone`, `mixed` or `shuffled`."""

    def embed(texts: Sequence[str]) -> Vectors:
        vectors = np.stack([OWN[text] for text in texts])
        kind = "alone" if len(texts) == 1 else "mixed" if len(texts) < 50 else "shuffled"
        if kind == spoil and list(texts) != TEXTS:
            vectors[-1] += np.float32(0.5)
        log.append(list(texts))
        return vectors

    return embed


@pytest.mark.parametrize("spoil", ["nothing", "alone", "mixed", "shuffled"])
def test_each_kind_of_batch_mates_is_looked_at(spoil: str) -> None:
    log: list[list[str]] = []
    embed = embedder(spoil, log)
    found = measure_invariance(embed, TEXTS, LENGTHS, embed(TEXTS))
    for kind in ("alone", "mixed", "shuffled"):
        figures = getattr(found, kind)
        expected = 0.5 if kind == spoil else 0
        assert figures.max_abs_difference == pytest.approx(expected, abs=1e-6)
        assert (figures.cosine_min < 0.999) == (kind == spoil)
    assert found.worst.max_abs_difference == pytest.approx(0 if spoil == "nothing" else 0.5, abs=1e-6)
    again = log[1:]
    assert sum(map(len, again)) == n_texts_again(50) == N_ALONE + N_MIXED + 50
    lengths = dict(zip(TEXTS, LENGTHS.tolist(), strict=True))
    mixed = [lengths[text] for text in again[N_ALONE]]
    assert (mixed[0], mixed[-1], len(set(mixed))) == (0, 49, N_MIXED)
    assert sorted(again[-1]) == sorted(TEXTS)
    assert again[-1] != TEXTS


def test_a_corpus_of_two_is_enough() -> None:
    log: list[list[str]] = []
    embed = embedder("nothing", log)
    found = measure_invariance(embed, TEXTS[:2], LENGTHS[:2], embed(TEXTS[:2]))
    assert found.worst.max_abs_difference == 0
    assert sum(map(len, log[1:])) == n_texts_again(2) == 6


def test_a_large_corpus_does_not_cost_twice() -> None:
    texts = [str(i) for i in range(1000)]
    vectors = np.random.default_rng(0).standard_normal((1000, 4)).astype(np.float32)
    log: list[list[str]] = []

    def embed(texts: Sequence[str]) -> Vectors:
        log.append(list(texts))
        return vectors[[int(text) for text in texts]]

    assert measure_invariance(embed, texts, np.arange(1000), vectors).worst.max_abs_difference == 0
    assert len(set(log[-1])) == len(log[-1]) == N_SHUFFLED
    assert log[-1] != sorted(log[-1], key=int)
    assert sum(map(len, log)) == n_texts_again(1000)
