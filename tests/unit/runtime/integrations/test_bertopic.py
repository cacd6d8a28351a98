from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from bertopic import BERTopic
from bertopic.representation import KeyBERTInspired
from hdbscan import HDBSCAN
from sklearn.decomposition import PCA

from mexma_runtime import Encoder, InputError
from mexma_runtime.integrations.bertopic import MexmaEmbedder

THEMES = (
    ("ferry", "The {} crosses the sea in {}.", ("ferry", "boat", "ship", "sailor")),
    ("bread", "Bake the {} in a hot oven in {}.", ("bread", "cake", "pie", "loaf")),
    ("court", "The {} has ruled on the law in {}.", ("court", "judge", "tribunal", "lawyer")),
)
MONTHS = ("March", "April", "June", "October")
TEXTS = [text.format(noun, month) for _, text, nouns in THEMES for noun in nouns for month in MONTHS]


def test_vectors_are_the_encoders(encoder: Encoder, minilm_bundle: Path) -> None:
    embedder = MexmaEmbedder(minilm_bundle, n_threads=encoder.info.n_threads)
    expected = encoder.encode_document(TEXTS)
    np.testing.assert_array_equal(embedder.embed_documents(TEXTS, verbose=True), expected)
    np.testing.assert_array_equal(embedder.embed_documents(np.array(TEXTS)), expected)
    np.testing.assert_array_equal(embedder.embed_words(np.array(TEXTS, dtype=object)), expected)
    assert embedder.embed(TEXTS).dtype == np.float32


def test_no_texts_give_no_vectors(encoder: Encoder) -> None:
    assert MexmaEmbedder(encoder).embed([]).shape == (0, encoder.info.dim)


def test_one_text_is_not_several(encoder: Encoder) -> None:
    with pytest.raises(InputError, match="expected a sequence of str, got str"):
        MexmaEmbedder(encoder).embed("abc")


def test_texts_of_three_themes_are_three_topics(encoder: Encoder, tmp_path: Path) -> None:
    embedder = MexmaEmbedder(encoder)
    model = BERTopic(
        embedding_model=embedder,
        umap_model=PCA(3, random_state=0),  # UMAP would be compiled for half a minute
        hdbscan_model=HDBSCAN(min_cluster_size=8, prediction_data=True),
        representation_model=KeyBERTInspired(),
    )
    topics, _ = model.fit_transform(TEXTS)
    by_theme = np.reshape(topics, (len(THEMES), -1))
    assert (by_theme == by_theme[:, :1]).all()
    assert sorted(by_theme[:, 0]) == [0, 1, 2]
    for (word, _, _), topic in zip(THEMES, by_theme[:, 0], strict=True):
        assert model.find_topics(word, top_n=1)[0] == [topic]
    assert model.transform(["A boat on the sea in May."])[0] == [by_theme[0, 0]]

    model.save(tmp_path / "model", serialization="safetensors", save_ctfidf=True)
    again = BERTopic.load(tmp_path / "model", embedding_model=embedder)
    assert again.transform(["A boat on the sea in May."])[0] == [by_theme[0, 0]]


def test_it_can_be_pickled(encoder: Encoder) -> None:
    again = pickle.loads(pickle.dumps(MexmaEmbedder(encoder)))
    np.testing.assert_array_equal(again.embed(TEXTS), encoder.encode_document(TEXTS))
