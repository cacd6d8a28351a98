from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mexma_runtime import BundleError, Encoder, EngineUnavailableError, InputError, UsageError
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.companions import SETTINGS, write_companions
from mexma_runtime.bundle.manifest import MANIFEST_NAME

pytest.importorskip("sentence_transformers")

import torch
from sentence_transformers import SentenceTransformer, SparseEncoder

from mexma_runtime.integrations.sentence_transformers import BundleModule

TEXTS = ["The ferry leaves at noon.", "Interest rates rose again.", "noon", "the " * 400] + [
    f"text {i} of some more" + " and more" * (i % 9) for i in range(70)
]


def opened(folder: Path, **options: Any) -> SentenceTransformer:
    return SentenceTransformer(str(folder), trust_remote_code=True, **options)


@pytest.fixture(scope="module")
def model(minilm_bundle: Path) -> SentenceTransformer:
    return opened(minilm_bundle)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("size", [1, 3, 32])
def test_vectors_are_the_encoders_bit_for_bit(minilm_bundle: Path, backend: str, size: int) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    expected = Encoder.load(minilm_bundle, backend=backend).encode(TEXTS, truncate="quietly")
    model = opened(minilm_bundle, model_kwargs={"backend": backend})

    np.testing.assert_array_equal(model.encode(TEXTS), expected)
    # Whatever the batches are, and for other modules of a model.
    batches = [model(model.preprocess(TEXTS[i : i + size])) for i in range(0, len(TEXTS), size)]
    np.testing.assert_array_equal(torch.cat([batch["sentence_embedding"] for batch in batches]).numpy(), expected)


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt_name": "query"},
        {"prompt": "a "},
        {"truncate_dim": 64},
        {"truncate_dim": 64, "normalize_embeddings": True},
        {"normalize_embeddings": True},
        {"precision": "int8"},
        {"precision": "ubinary"},
        {"batch_size": 5, "show_progress_bar": True},
        {"device": "cpu"},
    ],
)
def test_arguments_mean_what_they_mean_to_the_encoder(
    model: SentenceTransformer, encoder: Encoder, arguments: dict[str, Any]
) -> None:
    theirs, ours = model.encode(TEXTS, **arguments), encoder.encode(TEXTS, truncate="quietly", **arguments)

    assert theirs.dtype == ours.dtype
    # What is cut gets length 1 by PyTorch.
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=2e-7 if "normalize_embeddings" in arguments else 0)


def test_pytorch_gives_length_1_where_the_model_does_not(tiny: Path) -> None:
    expected = Encoder.load(tiny).encode(["the cat", "a dog"], normalize_embeddings=True)
    np.testing.assert_allclose(
        opened(tiny).encode(["the cat", "a dog"], normalize_embeddings=True), expected, atol=2e-7
    )


def test_length_1_is_not_given_twice(model: SentenceTransformer, encoder: Encoder) -> None:
    np.testing.assert_array_equal(model.encode(TEXTS[:3], normalize_embeddings=True), encoder.encode(TEXTS[:3]))


def test_the_encoder_makes_the_batches(tiny: Path) -> None:
    model, encoder, texts = opened(tiny), Encoder.load(tiny), TEXTS * 30
    handed_over = list[int]()
    handle = model[0].register_forward_pre_hook(lambda _, given: handed_over.append(len(given[0]["input_ids"])))
    try:
        vectors = model.encode(texts, "query", None, 4)
    finally:
        handle.remove()

    np.testing.assert_array_equal(vectors, encoder.encode_query(texts, truncate="quietly"))
    assert handed_over == [1024, 1024, len(texts) - 2048]
    with pytest.raises(ValueError, match="batch_size"):
        model.encode(TEXTS, batch_size=0)
    with pytest.raises(TypeError, match="batch_size"):
        model.encode(TEXTS, None, None, 4, batch_size=4)


def test_queries_documents_and_scores(model: SentenceTransformer, encoder: Encoder) -> None:
    np.testing.assert_array_equal(model.encode_query(TEXTS[:3]), encoder.encode_query(TEXTS[:3]))
    np.testing.assert_array_equal(model.encode_document(TEXTS[0]), encoder.encode_document(TEXTS[0]))
    a, b = encoder.encode(TEXTS[:3]), encoder.encode(TEXTS[3:6], truncate="quietly")
    np.testing.assert_allclose(model.similarity(a, b), encoder.similarity(a, b), atol=1e-6)
    np.testing.assert_allclose(model.similarity_pairwise(a, b), encoder.similarity_pairwise(a, b), atol=1e-6)
    assert model.similarity_fn_name == encoder.similarity_fn_name == "cosine"
    assert model.prompts == encoder.prompts
    assert model.get_embedding_dimension() == 384


def test_forms_of_the_result(model: SentenceTransformer, encoder: Encoder) -> None:
    expected = encoder.encode(TEXTS[:2])
    assert torch.equal(model.encode(TEXTS[:2], convert_to_tensor=True), torch.from_numpy(expected))
    rows = model.encode(TEXTS[:2], convert_to_numpy=False)
    assert all(isinstance(row, torch.Tensor) for row in rows)
    assert model.encode([]).shape == (0,)
    everything = model.encode(TEXTS[:2], output_value=None)
    assert [sorted(item) for item in everything] == [["attention_mask", "input_ids", "sentence_embedding"]] * 2
    np.testing.assert_array_equal(everything[1]["sentence_embedding"], expected[1])
    with pytest.raises(UsageError, match=r"output_value: expected 'sentence_embedding', .* got 'token"):
        model.encode(TEXTS[:2], output_value="token_embeddings")


def test_features_are_what_a_tokenizer_gives(model: SentenceTransformer, encoder: Encoder) -> None:
    features = model.preprocess(["noon", "The ferry leaves at noon."], prompt="query: ")
    ragged = encoder.tokenize(["noon", "The ferry leaves at noon."], prompt="query: ").ragged

    assert features["attention_mask"].sum(dim=1).tolist() == ragged.lengths.tolist()
    assert features["input_ids"][0].tolist() == [*ragged[0], *[0] * int(ragged.lengths[1] - ragged.lengths[0])]
    assert model[0].tokenize(["noon"])["input_ids"].tolist() == [
        encoder.tokenize(["noon"], prompt="").ragged[0].tolist()
    ]


def test_the_tokenizer_is_one_of_transformers(model: SentenceTransformer, encoder: Encoder) -> None:
    expected = encoder.tokenize(TEXTS, prompt="").ragged
    ids = model.tokenizer(TEXTS, padding=True, truncation=True, return_tensors="np")

    assert [row[mask == 1].tolist() for row, mask in zip(ids["input_ids"], ids["attention_mask"], strict=True)] == [
        expected[row].tolist() for row in range(len(TEXTS))
    ]
    assert model.tokenizer.decode(expected[0], skip_special_tokens=True) == "the ferry leaves at noon."
    assert model.tokenizer.model_max_length == model.max_seq_length == 256
    with pytest.raises(UsageError, match="tokenizer: it is the bundle's"):
        model.tokenizer = model.tokenizer


def test_features_of_other_tokenizers_are_taken(tiny: Path) -> None:
    model = opened(tiny)
    ids = model.preprocess(["the cat"])["input_ids"]

    vectors = model({"input_ids": ids})["sentence_embedding"]
    np.testing.assert_array_equal(vectors, model.encode(["the cat"]))
    for wrong in (ids + 2**32, ids - 2**32, ids.double() + 0.5, ids[0]):
        with pytest.raises(InputError):
            model({"input_ids": wrong})
    with pytest.raises(InputError, match=r"attention_mask \(n, length\), got torch.int64 \(1, 7\) and \(1, 3\)"):
        model({"input_ids": ids, "attention_mask": torch.ones(1, 3)})


def test_a_compiled_model_is_the_same(tiny: Path) -> None:
    model = opened(tiny)
    expected = model.encode(["the cat"])
    model.compile()
    np.testing.assert_array_equal(model.encode(["the cat"]), expected)


def test_a_default_prompt_is_the_models_and_put_once(copied: Path) -> None:
    manifest = Bundle.open(copied).manifest
    manifest = replace(manifest, text=replace(manifest.text, default_prompt_name="query"))
    (copied / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    write_companions(copied, manifest)
    model, encoder = opened(copied), Encoder.load(copied)

    np.testing.assert_array_equal(model.encode(TEXTS[:3]), encoder.encode(TEXTS[:3]))
    np.testing.assert_array_equal(model.encode(TEXTS[:3], prompt=""), encoder.encode(TEXTS[:3], prompt=""))
    assert np.any(model.encode(TEXTS[:3]) != model.encode(TEXTS[:3], prompt=""))
    plain = SentenceTransformer(modules=[BundleModule(copied)])
    np.testing.assert_array_equal(plain.encode(TEXTS[:3]), encoder.encode(TEXTS[:3], prompt=""))


def test_without_the_flag_modules_are_handed_over(minilm_bundle: Path, encoder: Encoder) -> None:
    module = BundleModule(minilm_bundle, n_threads=1)
    model = SentenceTransformer(modules=[module], **module.model_settings)

    np.testing.assert_array_equal(model.encode_query(TEXTS), encoder.encode_query(TEXTS, truncate="quietly"))
    assert model.similarity_fn_name == "cosine"
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(minilm_bundle))


def test_another_module_behind_it_gets_its_batches(minilm_bundle: Path, encoder: Encoder) -> None:
    class Halved(torch.nn.Module):
        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            return {**features, "sentence_embedding": features["sentence_embedding"] / 2}

    model = SentenceTransformer(modules=[BundleModule(minilm_bundle), Halved()])

    np.testing.assert_array_equal(model.encode(TEXTS), encoder.encode(TEXTS, prompt="", truncate="quietly") / 2)


def test_which_engine_is_a_matter_of_model_kwargs(tiny: Path) -> None:
    model = opened(tiny, model_kwargs={"engine": "portable.fp32", "backend": "onnxruntime", "n_threads": 1})
    info = model[0].encoder.info

    assert (info.engine, info.backend, info.n_threads) == ("portable.fp32", "onnxruntime", 1)
    assert "portable.fp32" in repr(model)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"model_kwargs": {"precision": "binary"}},
            UsageError,
            r"precision: expected one of fp32, .* got 'binary', a form .* encode\(",
        ),
        (
            {"model_kwargs": {"precision": "int8"}},
            EngineUnavailableError,
            r"no int8 engine .* the bundle has portable\.fp32",
        ),
        ({"model_kwargs": {"recipe": "fast"}}, EngineUnavailableError, "no int8 engine of recipe fast"),
        ({"model_kwargs": {"backend": "tensorrt"}}, EngineUnavailableError, "tensorrt on cpu is not in this version"),
        (
            {"model_kwargs": {"torch_dtype": "float16", "speed": 3}},
            UsageError,
            "a bundle takes none called speed, torch_dtype, but verify, precision, .* `precision`: fp32, fp16 or int8",
        ),
        ({"model_kwargs": {"n_threads": "two"}}, UsageError, "n_threads: expected int"),
        ({"backend": "onnx"}, UsageError, "backend='onnx' is sentence-transformers' own"),
        (
            {"processor_kwargs": {"use_fast": True}},
            UsageError,
            r"processor_kwargs: got \{'use_fast': True\}: .* no more than",
        ),
        ({"processor_kwargs": {"model_max_length": 17}}, UsageError, "max_seq_length: expected 3 to 16"),
        ({"config_kwargs": {"a": 1}}, UsageError, "config_kwargs: got .* no more than"),
        ({"model_kwargs": {"device": "cuda"}}, EngineUnavailableError, "CUDAExecutionProvider was asked for"),
    ],
)
def test_what_a_bundle_has_not_is_refused_when_it_is_loaded(
    tiny: Path, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        opened(tiny, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_gpu_that_is_not_there_is_said_with_what_to_do(tiny: Path) -> None:
    with pytest.raises(EngineUnavailableError, match=r"PyTorch cannot use the device .* device='cpu'"):
        opened(tiny, device="cuda")
    model = opened(tiny)
    with pytest.raises(EngineUnavailableError, match=r"PyTorch cannot use the device .* device='cpu'"):
        model.to("cuda")
    with pytest.raises(EngineUnavailableError, match=r"PyTorch cannot use the device .* device='cpu'"):
        model.encode(["the cat"], device="cuda")
    assert model.encode(["the cat"]).shape == (1, 8)


def test_inputs_that_are_no_text_are_named(tiny: Path) -> None:
    model = opened(tiny)
    texts: list[Any] = ["a", "the cat sat and sat", 3]
    with pytest.raises(InputError, match=r"^expected a str, got int: '3'"):
        model.encode(texts)
    with pytest.raises(UsageError, match="processing_kwargs"):
        model.encode(["a"], processing_kwargs={"text": {"max_length": 3}})


def test_the_limit_can_be_set(tiny: Path, recwarn: pytest.WarningsRecorder) -> None:
    model, encoder = opened(tiny), Encoder.load(tiny)
    assert model.max_seq_length == 16
    model.max_seq_length = encoder.max_seq_length = 5

    texts = ["the cat and the dog", "a"]
    np.testing.assert_array_equal(model.encode(texts), encoder.encode(texts, truncate="quietly"))
    assert model.max_seq_length == model[0].encoder.max_seq_length == 5
    assert pickle.loads(pickle.dumps(model))[0].encoder.max_seq_length == 5
    assert not [warning for warning in recwarn if "tokens" in str(warning.message)]
    with pytest.raises(UsageError, match="max_seq_length: expected 3 to 16"):
        model.max_seq_length = 600
    assert model.max_seq_length == 5
    shorter = opened(tiny, processor_kwargs={"model_max_length": 5})
    np.testing.assert_array_equal(shorter.encode(texts), model.encode(texts))


def test_companions_that_contradict_the_bundle_are_refused(tiny: Path) -> None:
    settings = json.loads((tiny / SETTINGS).read_text())
    (tiny / SETTINGS).write_text(json.dumps({**settings, "prompts": {"query": "find: "}}))

    with pytest.raises(BundleError, match=r"config_sentence_transformers.json: prompts .*find: .*bundle.json .*the "):
        opened(tiny)
    (tiny / SETTINGS).unlink()
    with pytest.raises(BundleError, match=r"config_sentence_transformers.json: prompts None, and bundle.json .*the "):
        opened(tiny)


def test_a_model_of_another_kind_is_refused(tiny: Path) -> None:
    with pytest.raises(UsageError, match=r"trust_remote_code, .* a bundle is no model of another kind"):
        SparseEncoder(str(tiny), trust_remote_code=True)
    with pytest.raises(TypeError, match="unknown options: precison"):
        BundleModule(tiny, precison="int8")  # type: ignore[call-arg]


def test_what_is_no_bundle_is_refused(tiny: Path) -> None:
    (tiny / MANIFEST_NAME).unlink()
    with pytest.raises(BundleError, match=r"not a bundle: the folder holds no bundle.json"):
        opened(tiny)


def test_a_runtime_that_is_too_old_is_said_by_requirements(tiny: Path) -> None:
    settings = json.loads((tiny / SETTINGS).read_text())
    settings["requirements"]["mexma-runtime"]["specifier"] = ">=99"
    (tiny / SETTINGS).write_text(json.dumps(settings))

    with pytest.raises(
        ImportError, match=r"mexma-runtime>=99, but mexma-runtime==.* It runs the engines(.|\n)*pip install"
    ):
        opened(tiny)


@pytest.fixture
def hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The bundle in the hub client's cache, as links to files by their content, and no network."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--bundle"
    snapshot, blobs = repository / "snapshots" / commit, repository / "blobs"
    for folder in (snapshot, blobs, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for path in tiny.iterdir():
        shutil.copy(path, blobs / path.name)
        (snapshot / path.name).symlink_to(os.path.relpath(blobs / path.name, snapshot))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return "someone/bundle"


def test_a_bundle_on_the_hub(hub: str, tmp_path: Path, tiny: Path) -> None:
    model = SentenceTransformer(hub, trust_remote_code=True, cache_folder=str(tmp_path / "hub"), local_files_only=True)

    np.testing.assert_array_equal(model.encode(["the cat"]), Encoder.load(tiny).encode(["the cat"]))
