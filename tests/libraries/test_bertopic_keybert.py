from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bertopic import BERTopic
from bertopic.backend._utils import select_backend
from keybert import KeyBERT
from keybert.backend._utils import select_backend as select_keybert_backend
from sentence_transformers import SentenceTransformer
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

THINGS = {
    "ferry": ("The ferry {} at noon.", "The old ferry {} from the harbour.", "A ferry {} while the sea was calm."),
    "bread": ("The baker's bread {} in the oven.", "Fresh bread {} on the table.", "This bread {} with sourdough."),
}
VERBS = ("left", "stood", "rose", "waited", "was seen", "was found")


@pytest.fixture(scope="module")
def model(bundle: str) -> SentenceTransformer:
    return SentenceTransformer(bundle, device="cpu", trust_remote_code=True)


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return [form.format(verb) for forms in THINGS.values() for form in forms for verb in VERBS]


def test_both_know_the_class_and_its_vectors_are_the_encoders(
    model: Any, expected: Any, same: Callable[..., None]
) -> None:
    for select in (select_backend, select_keybert_backend):
        backend = select(model)
        assert type(backend).__name__ == "SentenceTransformerBackend"
        same(backend.embed(expected.texts), expected.plain)


def test_bertopic_finds_topics(model: Any, documents: list[str], tmp_path: Path) -> None:
    topics = BERTopic(
        embedding_model=model,
        umap_model=PCA(n_components=2),
        hdbscan_model=KMeans(n_clusters=len(THINGS), n_init=3, random_state=0),
    )
    found, _ = topics.fit_transform(documents)
    half = len(documents) // 2
    assert len(set(found[:half])) == len(set(found[half:])) == 1
    assert found[0] != found[-1]
    assert {"ferry", "bread"} <= {word for topic in set(found) for word, _ in topics.get_topic(topic)}
    (alike, *_), _ = topics.find_topics("the boat at sea", top_n=1)
    assert alike == found[0]
    topics.save(tmp_path / "topics", serialization="safetensors", save_ctfidf=True, save_embedding_model=False)
    again = BERTopic.load(tmp_path / "topics", embedding_model=model)
    assert again.transform(["A ferry waited at sea."])[0][0] == found[0]


def test_keybert_finds_keywords(model: Any) -> None:
    text = "The ferry to the island leaves the harbour at noon and takes an hour to cross the sea."
    keywords = KeyBERT(model=model).extract_keywords(text, top_n=3)
    assert "ferry" in {word for word, _ in keywords}
