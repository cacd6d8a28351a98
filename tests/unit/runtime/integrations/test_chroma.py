from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import chromadb
import numpy as np
import pytest
from chromadb.api import ClientAPI
from chromadb.config import Settings
from chromadb.utils.embedding_functions import SentenceTransformerEmbeddingFunction

from mexma_runtime import BundleError, Encoder, InputError, UsageError
from mexma_runtime.integrations.chroma import MexmaEmbeddingFunction

TEXTS = ["The ferry leaves at noon.", "Bake the bread for forty minutes.", "The court has ruled."]
IDS = ["ferry", "bread", "court"]

REOPEN = """
import json, sys
import chromadb
from chromadb.config import Settings
import mexma_runtime.integrations.chroma
client = chromadb.PersistentClient(sys.argv[1], Settings(anonymized_telemetry=False))
collection = client.get_collection("texts")
collection.add(ids=["bus"], documents=["The bus leaves at eight."])
found = collection.query(query_texts=["When does the boat go?"], n_results=2)
print(json.dumps([found["ids"], found["distances"]]))
"""


def open_client(folder: Path) -> ClientAPI:
    return chromadb.PersistentClient(folder, Settings(anonymized_telemetry=False))


def test_vectors_are_the_encoders(encoder: Encoder, minilm_bundle: Path) -> None:
    function = MexmaEmbeddingFunction(minilm_bundle, n_threads=encoder.info.n_threads)
    documents, queries = function(TEXTS), function.embed_query(TEXTS)
    np.testing.assert_array_equal(documents, encoder.encode_document(TEXTS))
    np.testing.assert_array_equal(queries, encoder.encode_query(TEXTS))
    assert not np.array_equal(documents, queries)
    assert {row.dtype for row in [*documents, *queries]} == {np.dtype(np.float32)}


def test_chromas_own_function_takes_a_bundle(encoder: Encoder, minilm_bundle: Path) -> None:
    pytest.importorskip("sentence_transformers")
    function = SentenceTransformerEmbeddingFunction(
        str(minilm_bundle), trust_remote_code=True, model_kwargs={"precision": "fp32"}
    )
    for made in (function, SentenceTransformerEmbeddingFunction.build_from_config(function.get_config())):
        np.testing.assert_array_equal(made(TEXTS), encoder.encode(TEXTS))


def test_no_texts_are_refused_by_chroma(encoder: Encoder) -> None:
    function = MexmaEmbeddingFunction(encoder)
    assert function.embed_query([]) == []
    with pytest.raises(ValueError, match="non-empty"):
        function([])


def test_one_text_is_not_several(encoder: Encoder) -> None:
    function, one = MexmaEmbeddingFunction(encoder), cast("list[str]", "ab")
    for embed in (function, function.embed_query):
        with pytest.raises(InputError, match="expected a sequence of str, got str"):
            embed(one)


def test_images_are_refused(encoder: Encoder) -> None:
    with pytest.raises(InputError, match="input 1: expected a str, got ndarray"):
        MexmaEmbeddingFunction(encoder)(["a text", np.zeros((2, 2), dtype=np.int64)])  # type: ignore[arg-type]


def test_a_collection_keeps_vectors_and_finds_what_is_alike(encoder: Encoder, tmp_path: Path) -> None:
    collection = open_client(tmp_path).create_collection("texts", embedding_function=MexmaEmbeddingFunction(encoder))
    collection.add(ids=IDS, documents=TEXTS)
    kept = collection.get(ids=IDS, include=["embeddings"])
    assert kept["embeddings"] is not None
    by_id = dict(zip(kept["ids"], kept["embeddings"], strict=True))
    np.testing.assert_allclose([by_id[name] for name in IDS], encoder.encode_document(TEXTS), atol=1e-6)
    found = collection.query(query_texts=["When does the boat go?"], n_results=1)
    assert found["ids"] == [["ferry"]]
    assert found["distances"] is not None
    cosine = encoder.similarity(encoder.encode_query("When does the boat go?"), encoder.encode_document(TEXTS[0]))
    assert found["distances"][0][0] == pytest.approx(1 - cosine.item(), abs=1e-6)
    assert collection.configuration_json["hnsw"]["space"] == "cosine"


def test_another_process_opens_the_collection_again(encoder: Encoder, tmp_path: Path) -> None:
    collection = open_client(tmp_path).create_collection("texts", embedding_function=MexmaEmbeddingFunction(encoder))
    collection.add(ids=IDS, documents=TEXTS)
    done = subprocess.run([sys.executable, "-c", REOPEN, str(tmp_path)], check=True, stdout=subprocess.PIPE, text=True)
    ids, distances = json.loads(done.stdout)
    assert ids == [["ferry", "bus"]]
    query, bus = encoder.encode_query("When does the boat go?"), encoder.encode_document("The bus leaves at eight.")
    assert distances[0][1] == pytest.approx(1 - encoder.similarity(query, bus).item(), abs=1e-6)


def test_what_a_collection_keeps_gives_the_function_back(encoder: Encoder, minilm_bundle: Path) -> None:
    config = MexmaEmbeddingFunction(minilm_bundle, engine="portable.fp32").get_config()
    assert (
        json.loads(json.dumps(config))
        == config
        == {
            "bundle": str(minilm_bundle),
            "engine": "portable.fp32",
            "device": "cpu",
            "space": encoder.info.space,
        }
    )
    again = MexmaEmbeddingFunction.build_from_config(config)
    assert again.get_config() == config
    np.testing.assert_allclose(again(TEXTS), encoder.encode_document(TEXTS), atol=1e-6)


def test_settings_that_are_not_whole_are_refused_by_what_is_missing() -> None:
    with pytest.raises(UsageError, match="expected bundle, engine, device, space, missing are engine, device, space:"):
        MexmaEmbeddingFunction.build_from_config({"bundle": "x"})


def test_a_reopened_collection_loads_one_encoder_when_the_first_text_comes(
    minilm_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, loaded = Path(shutil.copytree(minilm_bundle, tmp_path / "bundle")), list[str]()
    load = Encoder.load

    def noting(path: str, **options: Any) -> Encoder:
        loaded.append(options["engine"])
        return load(path, **options)

    client = open_client(tmp_path / "chroma")
    function = MexmaEmbeddingFunction(bundle)
    monkeypatch.setattr(Encoder, "load", noting)
    client.create_collection("texts", embedding_function=function).add(ids=IDS, documents=TEXTS)
    collection = client.get_collection("texts")
    kept = collection.configuration["embedding_function"]
    assert kept is not None
    assert kept.get_config() == function.get_config()
    assert loaded == []
    for _ in range(3):
        assert collection.query(query_texts=["When does the boat go?"], n_results=1)["ids"] == [["ferry"]]
    assert loaded == ["fused.fp32"]


def test_a_bundle_of_other_vectors_is_not_taken_for_the_old_one(
    encoder: Encoder, minilm_bundle: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(minilm_bundle, tmp_path / "bundle"))
    client = open_client(tmp_path / "chroma")
    made = client.create_collection("texts", embedding_function=MexmaEmbeddingFunction(bundle))
    made.add(ids=IDS, documents=TEXTS)
    old = MexmaEmbeddingFunction(bundle).get_config()
    shutil.rmtree(bundle)
    shutil.copytree(tiny_bundle, bundle)
    with pytest.raises(BundleError, match=f"the collection those of {encoder.info.space}"):
        client.get_collection("texts").query(query_texts=["When does the boat go?"])
    with pytest.raises(UsageError, match=f"vectors of space {encoder.info.space}, not "):
        MexmaEmbeddingFunction(encoder).validate_config_update(old, MexmaEmbeddingFunction(bundle).get_config())

    moved = client.get_collection("texts", embedding_function=MexmaEmbeddingFunction(minilm_bundle))
    assert moved.query(query_texts=["When does the boat go?"], n_results=1)["ids"] == [["ferry"]]
