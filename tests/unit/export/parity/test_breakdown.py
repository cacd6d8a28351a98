from __future__ import annotations

import numpy as np
import pytest

from mexma_export.parity.breakdown import judge_vectors
from mexma_export.parity.figures import RowFigures, compare, worst_rows
from mexma_runtime.errors import UsageError

RANDOM = np.random.default_rng(0)
REFERENCE = RANDOM.standard_normal((10, 8)).astype(np.float32)
VECTORS = REFERENCE + np.float32(0.3) * RANDOM.standard_normal((10, 8)).astype(np.float32)
LENGTHS = [9, 2, 8, 16, 17, 32, 33, 512, 513, 1]
LANGUAGES = ["de", "en", "de", "en", "en", "zh", "en", "de", "de", "de"]


def test_every_sentence_is_in_the_bucket_of_its_length() -> None:
    found = judge_vectors(VECTORS, REFERENCE, lengths=np.array(LENGTHS))
    assert found.overall == compare(VECTORS, REFERENCE)
    assert found.worst == worst_rows(VECTORS, REFERENCE)
    rows = RowFigures.of(VECTORS, REFERENCE)
    expected = {
        "1-8": [1, 2, 9],
        "9-16": [0, 3],
        "17-32": [4, 5],
        "33-64": [6],
        "257-512": [7],
        "513-1024": [8],
    }
    assert found.by_length == {name: rows.summary(among) for name, among in expected.items()}
    assert [*found.by_length] == [*expected]
    assert found.by_language == {}


def test_languages_come_in_the_order_of_the_corpus() -> None:
    found = judge_vectors(VECTORS, REFERENCE, languages=LANGUAGES)
    assert {name: part.n_sentences for name, part in found.by_language.items()} == {"de": 5, "en": 4, "zh": 1}
    assert [*found.by_language] == ["de", "en", "zh"]
    assert found.by_language["zh"] == RowFigures.of(VECTORS, REFERENCE).summary([5])
    assert found.by_length == {}


def test_counts_must_agree() -> None:
    with pytest.raises(UsageError, match="lengths: expected one for each of 10 vectors, got 9"):
        judge_vectors(VECTORS, REFERENCE, lengths=LENGTHS[1:])
    with pytest.raises(UsageError, match="languages: expected one for each of 10 vectors, got 0"):
        judge_vectors(VECTORS, REFERENCE, languages=[])
