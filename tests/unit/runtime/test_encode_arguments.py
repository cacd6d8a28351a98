"""The arguments that `Encoder.encode` has of sentence-transformers 6, and what it does with each."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.runtime.conftest import MAX_TOKENS, MakeBundle

from mexma_runtime import Encoder, InputError, TextTooLongError, TruncationWarning, UsageError
from mexma_runtime.bundle.bundle import Bundle

TEXTS = ["the cat", "a", "and the dog sat", "b c d"]


def test_every_argument_of_sentence_transformers_is_taken_at_its_default(minilm_folder: Path, minilm: Encoder) -> None:
    model = pytest.importorskip("sentence_transformers").SentenceTransformer(str(minilm_folder), device="cpu")
    signature = inspect.signature(type(model).encode).parameters
    defaults = {
        name: parameter.default
        for name, parameter in signature.items()
        if parameter.default is not parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    }
    ours = [name for name in inspect.signature(Encoder.encode).parameters if name in signature]
    assert ours == [name for name in signature if name != "kwargs"]
    texts = ["The ferry leaves at noon.", "Interest rates rose again."]

    given: list[dict[str, Any]] = [{name: value} for name, value in defaults.items()]
    for arguments in [*given, defaults]:
        np.testing.assert_allclose(minilm.encode(texts, **arguments), model.encode(texts, **arguments), atol=1e-6)
    by_place = minilm.encode(texts, *defaults.values())
    np.testing.assert_array_equal(by_place, minilm.encode(texts, batch_size=32))


@pytest.mark.parametrize(
    "arguments",
    [
        {"truncate_dim": 64},
        {"truncate_dim": 64, "normalize_embeddings": True},
        {"truncate_dim": 1000},
        {"precision": "uint8", "truncate_dim": 100},
        {"precision": "ubinary", "truncate_dim": 100, "normalize_embeddings": True},
        {"precision": None},
    ],
)
def test_numbers_are_those_of_sentence_transformers(
    arguments: dict[str, Any], minilm_folder: Path, minilm: Encoder
) -> None:
    model = pytest.importorskip("sentence_transformers").SentenceTransformer(str(minilm_folder), device="cpu")
    texts = [f"sentence number {i} of many" for i in range(100)]

    ours, theirs = minilm.encode(texts, **arguments), model.encode(texts, **arguments)

    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    if ours.dtype == np.float32:
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    elif arguments["precision"] == "uint8":  # a number at the border of two steps
        assert np.abs(ours.astype(int) - theirs).max() <= 1
    else:
        assert np.mean(ours == theirs) > 0.999


@pytest.mark.parametrize("name", ["encode", "encode_query", "encode_document", "tokenize", "encode_iter"])
def test_texts_may_have_their_old_name(encoder: Encoder, name: str) -> None:
    method = getattr(encoder, name)
    if name == "tokenize":
        np.testing.assert_array_equal(method(sentences=TEXTS).ragged.ids, method(TEXTS).ragged.ids)
    else:
        np.testing.assert_array_equal(np.array(list(method(sentences=TEXTS))), np.array(list(method(inputs=TEXTS))))
    with pytest.raises(TypeError):
        method(inputs=TEXTS, sentences=TEXTS)
    with pytest.raises(TypeError):
        method(TEXTS, sentences=TEXTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_value": "token_embeddings"}, "output_value: expected 'sentence_embedding'.* got 'token_embeddings'"),
        ({"output_value": None}, "output_value: expected 'sentence_embedding'.* got None"),
        ({"device": "cuda"}, r"device: this encoder is on cpu, got 'cuda': Encoder.load\(..., device=...\)"),
        ({"device": "cpu:1"}, "device: this encoder is on cpu, got 'cpu:1'"),
        ({"device": ["cpu", "cpu"]}, r"device: this encoder is on cpu, got \['cpu', 'cpu'\]"),
        ({"pool": {}}, r"pool: expected None, got \{\}: an encoder is one process"),
        ({"chunk_size": 10}, "chunk_size: expected None, got 10"),
        (
            {"precision": "fp16"},
            r"precision: expected one of float32, .* got 'fp16'; an engine's own .* is chosen when",
        ),
        ({"truncate_dim": 0}, "truncate_dim: expected 1 or more, got 0"),
        ({"truncate_dim": True}, "truncate_dim: expected 1 or more, got True"),
        ({"truncate_dim": 3, "out": np.zeros((4, 8), np.float32)}, "`out` and output='device' take whole float32"),
        ({"precision": "binary", "out": np.zeros((4, 8), np.float32)}, "`out` and output='device' take whole float32"),
        ({"as_pooled": True, "normalize_embeddings": True}, "contradict each other"),
        ({"as_pooled": 1}, "as_pooled: expected True or False, got 1"),
        ({"truncate": "silently"}, "truncate: expected True or False, got 'silently'"),
    ],
)
def test_what_means_nothing_to_an_engine_is_refused(encoder: Encoder, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        encoder.encode(TEXTS, **arguments)


def test_an_encoder_is_on_its_own_device(encoder: Encoder) -> None:
    torch = pytest.importorskip("torch")
    for device in ("cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0)):
        np.testing.assert_array_equal(encoder.encode(TEXTS, device=device), encoder.encode(TEXTS))
    with pytest.raises(TypeError, match="unexpected keyword argument 'task'"):
        encoder.encode(TEXTS, task="query")  # type: ignore[call-overload]


def test_a_form_of_vectors_is_no_precision_of_an_engine(bundle_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"precision: expected one of fp32, .* got 'binary', a form .* encode\("):
        Encoder.load(bundle_folder, precision="binary")


def test_a_vector_in_fewer_bits_may_be_a_tensor(encoder: Encoder) -> None:
    torch = pytest.importorskip("torch")

    bits = encoder.encode(TEXTS, precision="ubinary", convert_to_tensor=True)

    assert (bits.dtype, tuple(bits.shape)) == (torch.uint8, (4, 1))
    assert encoder.encode("a", precision="binary").shape == (1,)
    with pytest.raises(InputError, match="embed many at once"):
        encoder.encode("a", precision="int8")


def test_a_cut_vector_has_length_1_only_where_asked(make_bundle: MakeBundle) -> None:
    with Encoder.load(make_bundle(normalize=True), n_threads=1) as encoder:
        whole, cut = encoder.encode(TEXTS), encoder.encode(TEXTS, truncate_dim=5)
        unit = encoder.encode(TEXTS, truncate_dim=5, normalize_embeddings=True)

    np.testing.assert_array_equal(cut, whole[:, :5])
    assert cut.flags.c_contiguous
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(unit, cut / np.linalg.norm(cut, axis=1, keepdims=True), atol=1e-6)


def test_texts_are_cut_quietly_where_asked(encoder: Encoder, recwarn: pytest.WarningsRecorder) -> None:
    long = ["the " * 40, "a"]
    quiet = encoder.encode(long, truncate="quietly")

    assert not recwarn.list
    with pytest.warns(TruncationWarning, match="1 of 2 texts have more than 16 tokens"):
        np.testing.assert_array_equal(encoder.encode(long), quiet)


@pytest.mark.parametrize("name", ["encode", "encode_query", "encode_iter"])
def test_a_warning_names_the_line_that_called(encoder: Encoder, name: str) -> None:
    with pytest.warns(TruncationWarning) as caught:
        list(getattr(encoder, name)(["the " * 40]))
    assert [warning.filename for warning in caught] == [__file__]


def test_a_shorter_limit(make_bundle: MakeBundle) -> None:
    text = "the cat and the dog sat"
    with Encoder.load(make_bundle(), n_threads=1) as encoder:
        assert encoder.max_seq_length == MAX_TOKENS
        space = encoder.info.space
        whole = encoder.tokenize([text]).ragged[0]
        encoder.max_seq_length = 5

        ids = encoder.tokenize([text]).ragged[0]
        assert ids.tolist() == [*whole[:4], whole[-1]]
        assert (encoder.max_seq_length, encoder.info.max_tokens) == (5, 5)
        assert encoder.info.space != space
        with pytest.warns(TruncationWarning, match="1 of 1 texts have more than 5 tokens"):
            vectors = encoder.encode([text])
        np.testing.assert_array_equal(vectors, encoder.encode_ids(encoder.tokenize([text]).ragged))
        with pytest.warns(TruncationWarning, match="more than 5 tokens"):
            np.testing.assert_array_equal(list(encoder.encode_iter([text])), vectors)
        with pytest.raises(TextTooLongError, match="more than 5 tokens"):
            encoder.encode([text], truncate=False)
        with pickle.loads(pickle.dumps(encoder)) as again:
            assert (again.max_seq_length, again.info.space) == (5, encoder.info.space)
        encoder.max_seq_length = MAX_TOKENS
        assert encoder.info.space == space
        limits: tuple[Any, ...] = (2, MAX_TOKENS + 1, 5.0, True, None)
        for limit in limits:
            with pytest.raises(
                UsageError, match=rf"max_seq_length: expected 3 to {MAX_TOKENS}, the model's limit, got"
            ):
                encoder.max_seq_length = limit


def test_what_an_encoder_says_of_its_vectors(encoder: Encoder) -> None:
    assert encoder.get_embedding_dimension() == encoder.get_sentence_embedding_dimension() == 8
    assert encoder.similarity_fn_name == "cosine"


def test_similarity_is_the_checkpoints_own(make_bundle: MakeBundle) -> None:
    a, b = np.eye(2, 8, dtype=np.float32) * 3, np.ones((2, 8), np.float32)
    folder = make_bundle(similarity="dot")
    with Encoder.load(folder, n_threads=1) as encoder:
        assert encoder.similarity_fn_name == "dot"
        assert encoder.similarity(a, b).tolist() == [[3, 3], [3, 3]]
        assert encoder.similarity_pairwise(a, b).tolist() == [3, 3]
    with Encoder.load(make_bundle(), n_threads=1) as cosine:
        np.testing.assert_allclose(cosine.similarity_pairwise(a, b), 8**-0.5, rtol=1e-6)


def test_the_tokenizer_is_a_copy_that_does_not_cut(encoder: Encoder, bundle_folder: Path) -> None:
    tokenizer = encoder.tokenizer
    long = "the " * 40

    assert len(tokenizer.encode(long).ids) > MAX_TOKENS
    assert tokenizer is encoder.tokenizer
    tokenizer.enable_padding(length=64)
    assert encoder.tokenize(["a"]).ragged.lengths.tolist() == [
        len(Encoder.load(bundle_folder).tokenize(["a"]).ragged[0])
    ]
    assert Bundle.open(bundle_folder).manifest.text.max_tokens == MAX_TOKENS
