from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

from mexma_runtime import Encoder, InputError, UsageError
from mexma_runtime.types import Vectors


@pytest.fixture(scope="module")
def embedding(bundle: str) -> HuggingFaceEmbedding:
    return HuggingFaceEmbedding(bundle, trust_remote_code=True)


def test_vectors_are_the_encoders(embedding: Any, encoder: Encoder, expected: Any, same: Callable[..., None]) -> None:
    same(embedding.get_text_embedding_batch(expected.texts), expected.plain)
    same(embedding.get_text_embedding(expected.texts[0]), encoder.encode(expected.texts[0]))
    same(asyncio.run(embedding.aget_text_embedding_batch(expected.texts)), expected.plain)
    same(asyncio.run(embedding.aget_query_embedding(expected.texts[0])), encoder.encode(expected.texts[0]))


def test_it_puts_its_own_instructions_in_the_place_of_the_bundles_prompts(
    bundle: str, embedding: Any, expected: Any, same: Callable[..., None]
) -> None:
    def queries(embedding: Any) -> list[Vectors]:
        return [embedding.get_query_embedding(text) for text in expected.texts]

    same(queries(embedding), expected.plain)
    instructed = HuggingFaceEmbedding(
        bundle, trust_remote_code=True, query_instruction="query: ", text_instruction="passage: "
    )
    same(queries(instructed), expected.query)
    same(instructed.get_text_embedding_batch(expected.texts), expected.document)


def test_max_length_cuts_earlier_and_not_later_than_the_model(
    bundle: str, embedding: Any, expected: Any, same: Callable[..., None]
) -> None:
    assert embedding.max_length == 256
    encoder = Encoder.load(bundle)
    encoder.max_seq_length = 16
    shorter = HuggingFaceEmbedding(bundle, trust_remote_code=True, max_length=16)
    same(shorter.get_text_embedding_batch(expected.texts), encoder.encode(expected.texts))
    with pytest.raises(UsageError, match="max_seq_length: expected 3 to 256"):
        HuggingFaceEmbedding(bundle, trust_remote_code=True, max_length=512)


def test_several_processes(bundle: str, expected: Any, same: Callable[..., None]) -> None:
    embedding = HuggingFaceEmbedding(
        bundle, trust_remote_code=True, parallel_process=True, target_devices=["cpu", "cpu"]
    )
    same(embedding.get_text_embedding_batch(expected.texts), expected.plain)


def test_options_of_the_encoder(bundle: str, expected: Any, same: Callable[..., None]) -> None:
    embedding = HuggingFaceEmbedding(bundle, trust_remote_code=True, model_kwargs={"dialect": "portable"})
    same(embedding.get_text_embedding_batch(expected.texts), expected.plain)


def test_a_picture_is_refused(embedding: Any, tmp_path: Any) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError):
        embedding.get_image_embedding(tmp_path / "a.png")


def test_an_index_finds_what_is_alike(embedding: Any) -> None:
    texts = ["The ferry leaves at noon.", "Bake the bread for forty minutes.", "The court has ruled."]
    index = VectorStoreIndex.from_documents([Document(text=text) for text in texts], embed_model=embedding)
    (found,) = index.as_retriever(similarity_top_k=1).retrieve("When does the boat go?")
    assert found.text == texts[0]
