from __future__ import annotations

import numpy as np

from mexma_benchmarks.run.workload import LONGEST, N_SPECIAL, SHORTEST, describe_lengths, draw_lengths, write_texts


def test_drawn_lengths_have_the_stated_distribution() -> None:
    lengths = draw_lengths(50_000)

    assert abs(lengths.mean() - 11.6) < 0.1
    assert np.percentile(lengths, 95) == 21
    assert SHORTEST <= lengths.min() <= lengths.max() <= LONGEST
    assert describe_lengths(lengths) == "mean 11.6 tokens, 95th percentile 21"


def test_lengths_and_texts_are_the_same_every_time() -> None:
    words = ["red", "green", "blue"]
    lengths = draw_lengths(100)

    assert (lengths == draw_lengths(100)).all()
    assert (lengths != draw_lengths(100, seed=1)).any()
    assert write_texts(lengths, words) == write_texts(lengths, words)


def test_a_text_has_a_word_for_each_token_that_is_not_special() -> None:
    words = ["red", "green", "blue"]
    lengths = draw_lengths(300)

    texts = write_texts(lengths, words)

    assert [len(text.split()) + N_SPECIAL for text in texts] == lengths.tolist()
    assert set(" ".join(texts).split()) == set(words)
