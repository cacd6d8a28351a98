from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from txtai import Embeddings

from mexma_runtime import Encoder

HOW = {"method": "sentence-transformers", "vectors": {"trust_remote_code": True}}


@pytest.fixture(scope="module")
def embeddings(bundle: str) -> Embeddings:
    return Embeddings(path=bundle, **HOW)


def test_vectors_are_the_encoders(embeddings: Any, encoder: Encoder, expected: Any, same: Callable[..., None]) -> None:
    same(embeddings.batchtransform(expected.texts, "query"), expected.query)
    same(embeddings.batchtransform(expected.texts, "data"), expected.document)
    same(embeddings.transform(expected.texts[0], "data"), encoder.encode_document(expected.texts[0]))


def test_a_text_of_no_category_is_a_query(embeddings: Any, expected: Any, same: Callable[..., None]) -> None:
    same(embeddings.batchtransform(expected.texts), expected.query)


def test_options_of_the_encoder(bundle: str, expected: Any, same: Callable[..., None]) -> None:
    vectors = {"trust_remote_code": True, "model_kwargs": {"dialect": "portable"}}
    embeddings = Embeddings(path=bundle, method="sentence-transformers", vectors=vectors, encodebatch=2)
    same(embeddings.batchtransform(expected.texts, "data"), expected.document)


def test_an_index_that_was_saved_finds_what_is_alike(bundle: str, tmp_path: Path) -> None:
    texts = ["The ferry leaves at noon.", "Bake the bread for forty minutes.", "The court has ruled."]
    with Embeddings(path=bundle, content=True, **HOW) as embeddings:
        embeddings.index(texts)
        embeddings.save(str(tmp_path / "index"))
    with Embeddings() as again:
        again.load(str(tmp_path / "index"))
        (found,) = again.search("When does the boat go?", 1)
    assert found["text"] == texts[0]
