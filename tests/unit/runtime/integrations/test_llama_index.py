from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.schema import TextNode

from mexma_runtime import Encoder, InputError
from mexma_runtime.integrations.llama_index import MexmaEmbedding

TEXTS = ["The ferry leaves at noon.", "Bake the bread for forty minutes.", "", "The court has ruled."]


def test_vectors_are_the_encoders_as_lists_of_floats(encoder: Encoder, minilm_bundle: Path) -> None:
    embedding = MexmaEmbedding(minilm_bundle, n_threads=encoder.info.n_threads)
    documents, query = embedding.get_text_embedding_batch(TEXTS), embedding.get_query_embedding(TEXTS[0])
    assert documents == encoder.encode_document(TEXTS).tolist()
    assert query == encoder.encode_query(TEXTS[0]).tolist()
    assert query != documents[0]
    np.testing.assert_allclose(embedding.get_text_embedding(TEXTS[0]), documents[0], atol=1e-6)
    assert {type(number) for row in [query, *documents] for number in row} == {float}


def test_async_vectors_are_the_same(encoder: Encoder) -> None:
    embedding = MexmaEmbedding(encoder)
    assert asyncio.run(embedding.aget_text_embedding_batch(TEXTS)) == embedding.get_text_embedding_batch(TEXTS)
    assert asyncio.run(embedding.aget_text_embedding(TEXTS[0])) == embedding.get_text_embedding(TEXTS[0])
    assert asyncio.run(embedding.aget_query_embedding(TEXTS[0])) == embedding.get_query_embedding(TEXTS[0])


def test_llama_indexes_own_fields_go_with_both_ways_to_make_it(encoder: Encoder, minilm_bundle: Path) -> None:
    assert MexmaEmbedding(encoder).model_name == encoder.info.model_id
    named = MexmaEmbedding(minilm_bundle, precision="fp32", model_name="mine", embed_batch_size=2, num_workers=2)
    assert (named.model_name, named.embed_batch_size, named.num_workers) == ("mine", 2, 2)
    expected = encoder.encode_document(TEXTS)
    np.testing.assert_allclose(named.get_text_embedding_batch(TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(asyncio.run(named.aget_text_embedding_batch(TEXTS)), expected, atol=1e-6)
    with pytest.raises(ValueError, match="embed_batch_size"):
        MexmaEmbedding(encoder, embed_batch_size=0)


def test_no_texts_give_no_vectors(encoder: Encoder) -> None:
    embedding = MexmaEmbedding(encoder)
    assert embedding.get_text_embedding_batch([]) == []
    assert asyncio.run(embedding.aget_text_embedding_batch([])) == []


@pytest.mark.parametrize("name", ["get_query_embedding", "get_text_embedding"])
def test_several_texts_are_not_one(encoder: Encoder, name: str) -> None:
    embedding = MexmaEmbedding(encoder)
    with pytest.raises(InputError, match="expected a str, got list"):
        getattr(embedding, name)(["a", "b"])
    with pytest.raises(InputError, match="expected a str, got list"):
        asyncio.run(getattr(embedding, f"a{name}")(["a", "b"]))


def test_a_cancelled_task_cancels_the_calls(encoder: Encoder, cancel_once_begun: Callable[[Any], list[str]]) -> None:
    embedding = MexmaEmbedding(encoder, embed_batch_size=2048)
    endings = cancel_once_begun(embedding.aget_text_embedding_batch)
    assert set(endings) == {"cancelled"}
    assert len(asyncio.run(embedding.aget_query_embedding("The ferry leaves at noon."))) == encoder.info.dim


def test_an_index_finds_what_is_alike(encoder: Encoder) -> None:
    documents = [Document(text=text) for text in TEXTS if text]
    index = VectorStoreIndex.from_documents(documents, embed_model=MexmaEmbedding(encoder))
    retriever = index.as_retriever(similarity_top_k=1)
    (found,) = retriever.retrieve("When does the boat go?")
    assert found.text == TEXTS[0]
    (found,) = asyncio.run(retriever.aretrieve("How long is a loaf in the oven?"))
    assert found.text == TEXTS[1]


def test_it_can_be_pickled_and_made_from_what_it_says_of_itself(encoder: Encoder) -> None:
    embedding = MexmaEmbedding(encoder, embed_batch_size=7)
    vector = embedding.get_query_embedding("noon")
    for other in (
        pickle.loads(pickle.dumps(embedding)),
        MexmaEmbedding.from_dict(embedding.to_dict(), encoder=encoder),
    ):
        assert other.get_query_embedding("noon") == vector
        assert other.embed_batch_size == 7


def test_a_cache_knows_engines_of_other_vectors_apart(encoder: Encoder) -> None:
    nodes, cache = [TextNode(id_="0", text=TEXTS[0])], IngestionCache()
    first = MexmaEmbedding(encoder)
    other = first.model_copy(update={"space": "0" * 16})
    for embedding, n_cached in ((first, 1), (first, 1), (other, 2)):
        IngestionPipeline(transformations=[embedding], cache=cache).run(nodes=nodes)
        assert len(cache.cache.get_all(collection=cache.collection)) == n_cached
