from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from mexma_runtime import Encoder, InputError
from mexma_runtime.integrations.langchain import MexmaEmbeddings

TEXTS = ["The ferry leaves at noon.", "Bake the bread for forty minutes.", "", "The court has ruled."]


def test_vectors_are_the_encoders_as_lists_of_floats(encoder: Encoder, minilm_bundle: Path) -> None:
    embeddings = MexmaEmbeddings(minilm_bundle, n_threads=encoder.info.n_threads)
    documents, query = embeddings.embed_documents(TEXTS), embeddings.embed_query(TEXTS[0])
    assert documents == encoder.encode_document(TEXTS).tolist()
    assert query == encoder.encode_query(TEXTS[0]).tolist()
    assert query != documents[0]
    assert {type(number) for row in [query, *documents] for number in row} == {float}


def test_async_vectors_are_the_same(encoder: Encoder) -> None:
    embeddings = MexmaEmbeddings(encoder)
    assert asyncio.run(embeddings.aembed_documents(TEXTS)) == embeddings.embed_documents(TEXTS)
    assert asyncio.run(embeddings.aembed_query(TEXTS[0])) == embeddings.embed_query(TEXTS[0])


def test_no_texts_give_no_vectors(encoder: Encoder) -> None:
    embeddings = MexmaEmbeddings(encoder)
    assert embeddings.embed_documents([]) == []
    assert asyncio.run(embeddings.aembed_documents([])) == []


def test_one_text_is_not_several(encoder: Encoder) -> None:
    embeddings = MexmaEmbeddings(encoder)
    one, several = cast("list[str]", "abc"), cast("str", ["a", "b"])
    with pytest.raises(InputError, match="expected a sequence of str, got str"):
        embeddings.embed_documents(one)
    with pytest.raises(InputError, match="expected a sequence of str, got str"):
        asyncio.run(embeddings.aembed_documents(one))
    with pytest.raises(InputError, match="expected a str, got list"):
        embeddings.embed_query(several)
    with pytest.raises(InputError, match="expected a str, got list"):
        asyncio.run(embeddings.aembed_query(several))


def test_a_cancelled_task_cancels_the_call(encoder: Encoder, cancel_once_begun: Callable[[Any], list[str]]) -> None:
    embeddings = MexmaEmbeddings(encoder)
    assert cancel_once_begun(embeddings.aembed_documents) == ["cancelled"]
    assert len(asyncio.run(embeddings.aembed_query("The ferry leaves at noon."))) == encoder.info.dim


def test_a_store_finds_what_is_alike(encoder: Encoder) -> None:
    store = InMemoryVectorStore(MexmaEmbeddings(encoder))
    store.add_documents([Document(text, id=str(index)) for index, text in enumerate(TEXTS)])
    assert [found.id for found in store.similarity_search("When does the boat go?", k=1)] == ["0"]
    (found,) = asyncio.run(store.asimilarity_search("How long is a loaf in the oven?", k=1))
    assert found.id == "1"


def test_it_can_be_pickled(encoder: Encoder) -> None:
    embeddings = MexmaEmbeddings(encoder)
    assert pickle.loads(pickle.dumps(embeddings)).embed_query("noon") == embeddings.embed_query("noon")
