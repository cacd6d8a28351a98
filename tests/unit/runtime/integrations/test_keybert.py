from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from keybert import KeyBERT

from mexma_runtime import Encoder, InputError
from mexma_runtime.integrations.keybert import MexmaEmbedder

TEXT = "The ferry leaves the harbour at noon, and crosses the strait in an hour when the sea is calm."


def test_vectors_are_the_encoders(encoder: Encoder, minilm_bundle: Path) -> None:
    embedder = MexmaEmbedder(minilm_bundle, n_threads=encoder.info.n_threads)
    words = np.array(["ferry", "harbour", "noon"], dtype=object)
    vectors = embedder.embed(words, verbose=True)
    np.testing.assert_array_equal(vectors, encoder.encode_document(list(words)))
    np.testing.assert_array_equal(vectors, embedder.embed(np.array(list(words))))
    assert vectors.dtype == np.float32


def test_no_words_give_no_vectors(encoder: Encoder) -> None:
    assert MexmaEmbedder(encoder).embed([]).shape == (0, encoder.info.dim)


def test_one_text_is_not_several(encoder: Encoder) -> None:
    with pytest.raises(InputError, match="expected a sequence of str, got str"):
        MexmaEmbedder(encoder).embed("abc")


def test_keywords_are_those_that_are_most_like_the_text(encoder: Encoder) -> None:
    keywords = KeyBERT(MexmaEmbedder(encoder)).extract_keywords(TEXT, top_n=3)
    words, cosines = zip(*keywords, strict=True)
    assert words[0] == "ferry"
    expected = encoder.similarity(encoder.encode_document(TEXT), encoder.encode_document(words))[0]
    np.testing.assert_allclose(cosines, expected, atol=1e-4)


def test_texts_are_taken_together(encoder: Encoder) -> None:
    model = KeyBERT(MexmaEmbedder(encoder))
    texts = [TEXT, "Bake the bread until its crust is brown."]
    ferry, bread = model.extract_keywords(texts, top_n=1)
    assert [ferry[0][0], bread[0][0]] == ["ferry", "bread"]
