from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack_integrations.components.embedders.sentence_transformers import (
    SentenceTransformersDocumentEmbedder,
    SentenceTransformersTextEmbedder,
)

from mexma_runtime import Encoder

QUIET = {"trust_remote_code": True, "progress_bar": False}


def embed_documents(embedder: Any, texts: list[str]) -> list[list[float]]:
    documents = embedder.run(documents=[Document(content=text) for text in texts])["documents"]
    return [document.embedding for document in documents]


def test_vectors_are_the_encoders(bundle: str, encoder: Encoder, expected: Any, same: Callable[..., None]) -> None:
    documents = SentenceTransformersDocumentEmbedder(model=bundle, **QUIET)
    text = SentenceTransformersTextEmbedder(model=bundle, **QUIET)
    same(embed_documents(documents, expected.texts), expected.plain)
    same([text.run(text=one)["embedding"] for one in expected.texts], expected.plain)
    same(text.run(text=expected.texts[0])["embedding"], encoder.encode(expected.texts[0]))


def test_prompts_are_asked_for_by_name_or_as_a_prefix(bundle: str, expected: Any, same: Callable[..., None]) -> None:
    documents = SentenceTransformersDocumentEmbedder(model=bundle, encode_kwargs={"prompt_name": "document"}, **QUIET)
    same(embed_documents(documents, expected.texts), expected.document)
    for how in ({"encode_kwargs": {"prompt_name": "query"}}, {"prefix": "query: "}):
        text = SentenceTransformersTextEmbedder(model=bundle, **how, **QUIET)
        same([text.run(text=one)["embedding"] for one in expected.texts], expected.query)


def test_options_and_forms(bundle: str, encoder: Encoder, expected: Any, same: Callable[..., None]) -> None:
    embedder = SentenceTransformersDocumentEmbedder(
        model=bundle, truncate_dim=64, normalize_embeddings=True, model_kwargs={"dialect": "portable"}, **QUIET
    )
    same(
        embed_documents(embedder, expected.texts),
        encoder.encode(expected.texts, truncate_dim=64, normalize_embeddings=True),
    )
    binary = SentenceTransformersDocumentEmbedder(model=bundle, precision="ubinary", **QUIET)
    assert np.array_equal(embed_documents(binary, expected.texts), encoder.encode(expected.texts, precision="ubinary"))


def test_an_embedder_survives_serialization(bundle: str, expected: Any, same: Callable[..., None]) -> None:
    embedder = SentenceTransformersTextEmbedder(model=bundle, model_kwargs={"n_threads": 1}, **QUIET)
    again = SentenceTransformersTextEmbedder.from_dict(embedder.to_dict())
    same(again.run(text=expected.texts[0])["embedding"], expected.plain[0])


def test_a_limit_of_the_tokenizer_is_the_models(bundle: str, expected: Any, same: Callable[..., None]) -> None:
    embedder = SentenceTransformersTextEmbedder(model=bundle, tokenizer_kwargs={"model_max_length": 16}, **QUIET)
    shorter = Encoder.load(bundle)
    shorter.max_seq_length = 16
    long = expected.texts[-1]
    same(embedder.run(text=long)["embedding"], shorter.encode(long, truncate="quietly"))


def test_a_pipeline_finds_what_is_alike(bundle: str) -> None:
    texts = ["The ferry leaves at noon.", "Bake the bread for forty minutes.", "The court has ruled."]
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    embedder = SentenceTransformersDocumentEmbedder(model=bundle, **QUIET)
    store.write_documents(embedder.run(documents=[Document(content=text) for text in texts])["documents"])
    pipeline = Pipeline()
    pipeline.add_component("text", SentenceTransformersTextEmbedder(model=bundle, **QUIET))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    pipeline.connect("text.embedding", "retriever.query_embedding")
    (found,) = pipeline.run({"text": {"text": "When does the boat go?"}})["retriever"]["documents"]
    assert found.content == texts[0]
