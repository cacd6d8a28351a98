from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from mexma_runtime import Encoder


@pytest.fixture(scope="module")
def model(bundle: str) -> SentenceTransformer:
    return SentenceTransformer(bundle, device="cpu", trust_remote_code=True)


def test_vectors_are_the_encoders(model: Any, encoder: Encoder, expected: Any, same: Callable[..., None]) -> None:
    same(model.encode(expected.texts), expected.plain)
    same(model.encode(expected.texts, batch_size=2), expected.plain)
    same(model.encode(expected.texts, convert_to_tensor=True, normalize_embeddings=True), expected.plain)
    same(model.encode(expected.texts[0]), encoder.encode(expected.texts[0]))
    assert model.encode(expected.texts).dtype == np.float32


def test_the_encoder_makes_the_batches(model: Any, expected: Any, same: Callable[..., None]) -> None:
    sizes = list[int]()
    handle = model[0].register_forward_pre_hook(lambda _, given: sizes.append(len(given[0]["input_ids"])))
    try:
        same(model.encode(sentences=expected.texts * 10, batch_size=2), np.tile(expected.plain, (10, 1)))
        same(model.encode(expected.texts * 10, None, "query: ", 8), np.tile(expected.query, (10, 1)))
    finally:
        handle.remove()
    assert set(sizes) == {len(expected.texts) * 10}


def test_queries_and_documents_get_the_prompts(model: Any, expected: Any, same: Callable[..., None]) -> None:
    same(model.encode_query(expected.texts), expected.query)
    same(model.encode_document(expected.texts), expected.document)
    same(model.encode(expected.texts, prompt_name="query"), expected.query)
    same(model.encode(expected.texts, prompt="passage: "), expected.document)


def test_forms_of_vectors(model: Any, encoder: Encoder, expected: Any, same: Callable[..., None]) -> None:
    same(model.encode(expected.texts, truncate_dim=64), encoder.encode(expected.texts, truncate_dim=64))
    assert np.array_equal(
        model.encode(expected.texts, precision="ubinary"), encoder.encode(expected.texts, precision="ubinary")
    )


def test_similarity_is_the_bundles(model: Any, encoder: Encoder, expected: Any, same: Callable[..., None]) -> None:
    assert model.similarity_fn_name == encoder.similarity_fn_name == "cosine"
    same(model.similarity(expected.query, expected.document), encoder.similarity(expected.query, expected.document))


def test_what_other_libraries_ask_of_a_model(model: Any, encoder: Encoder) -> None:
    assert model.get_sentence_embedding_dimension() == encoder.info.dim
    assert model.max_seq_length == encoder.max_seq_length
    assert model.device == torch.device("cpu")
    assert len(model) == 1
    assert type(model._first_module()).__name__ == "BundleModule"
    assert model.tokenizer.encode("The ferry leaves.") == encoder.tokenizer.encode("The ferry leaves.").ids
    assert model.prompts == encoder.prompts
    assert "BundleModule" in repr(model)


def test_a_shorter_limit_cuts(bundle: str, expected: Any, same: Callable[..., None]) -> None:
    model = SentenceTransformer(bundle, device="cpu", trust_remote_code=True)
    model.max_seq_length = 16
    encoder = Encoder.load(bundle)
    encoder.max_seq_length = 16
    same(model.encode(expected.texts), encoder.encode(expected.texts))
    assert not np.allclose(model.encode(expected.texts), expected.plain, atol=1e-3)


def test_half_precision_of_pytorch_changes_no_vector(bundle: str, expected: Any, same: Callable[..., None]) -> None:
    model = SentenceTransformer(bundle, device="cpu", trust_remote_code=True).half().eval()
    same(model.encode(expected.texts), expected.plain)


def test_several_processes(model: Any, expected: Any, same: Callable[..., None]) -> None:
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        same(model.encode(expected.texts, pool=pool, chunk_size=4), expected.plain)
    finally:
        model.stop_multi_process_pool(pool)


def test_a_saved_model_is_the_bundle_again(
    model: Any, tmp_path: Path, expected: Any, same: Callable[..., None]
) -> None:
    model.save_pretrained(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    same(again.encode_query(expected.texts), expected.query)
    same(Encoder.load(tmp_path / "saved").encode_query(expected.texts), expected.query)
