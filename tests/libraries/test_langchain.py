from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_huggingface import HuggingFaceEmbeddings
from langchain_text_splitters import SentenceTransformersTokenTextSplitter

from mexma_runtime import Encoder

TRUSTED = {"trust_remote_code": True}


@pytest.fixture(scope="module")
def embeddings(bundle: str) -> HuggingFaceEmbeddings:
    return HuggingFaceEmbeddings(model_name=bundle, model_kwargs=TRUSTED)


def test_vectors_are_the_encoders(embeddings: Any, encoder: Encoder, expected: Any, same: Callable[..., None]) -> None:
    same(embeddings.embed_documents(expected.texts), expected.plain)
    same(embeddings.embed_query(expected.texts[0]), encoder.encode(expected.texts[0]))
    same(asyncio.run(embeddings.aembed_documents(expected.texts)), expected.plain)


def test_prompts_are_asked_for_by_name(bundle: str, expected: Any, same: Callable[..., None]) -> None:
    embeddings = HuggingFaceEmbeddings(
        model_name=bundle,
        model_kwargs=TRUSTED,
        encode_kwargs={"prompt_name": "document"},
        query_encode_kwargs={"prompt_name": "query"},
    )
    same(embeddings.embed_documents(expected.texts), expected.document)
    same([embeddings.embed_query(text) for text in expected.texts], expected.query)


def test_several_processes(bundle: str, expected: Any, same: Callable[..., None]) -> None:
    embeddings = HuggingFaceEmbeddings(model_name=bundle, model_kwargs=TRUSTED, multi_process=True)
    same(embeddings.embed_documents(expected.texts), expected.plain)


def test_options_of_the_encoder(bundle: str, expected: Any, same: Callable[..., None]) -> None:
    options = {**TRUSTED, "device": "cpu", "model_kwargs": {"dialect": "portable", "n_threads": 1}}
    embeddings = HuggingFaceEmbeddings(
        model_name=bundle, model_kwargs=options, encode_kwargs={"normalize_embeddings": True, "batch_size": 2}
    )
    same(embeddings.embed_documents(expected.texts), expected.plain)


def test_a_store_finds_what_is_alike(embeddings: Any) -> None:
    store = InMemoryVectorStore(embeddings)
    texts = ["The ferry leaves at noon.", "Bake the bread for forty minutes.", "The court has ruled."]
    store.add_documents([Document(text, id=str(index)) for index, text in enumerate(texts)])
    assert [found.id for found in store.similarity_search("When does the boat go?", k=1)] == ["0"]


def test_texts_are_split_by_its_tokens(bundle: str, encoder: Encoder) -> None:
    splitter = SentenceTransformersTokenTextSplitter(model_name=bundle, model_kwargs=TRUSTED, chunk_overlap=0)
    pieces = splitter.split_text("the ferry leaves at noon " * 200)

    # The splitter does not count special tokens.
    assert encoder.tokenizer.encode(pieces[0], add_special_tokens=False).ids[:4] == splitter.tokenizer.encode(
        "the ferry leaves at", add_special_tokens=False
    )
    assert len(pieces) == -(-5 * 200 // splitter.tokens_per_chunk)
    assert " ".join(pieces).split() == ["the", "ferry", "leaves", "at", "noon"] * 200
