from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import NFC
from tokenizers.normalizers import Sequence as Chain
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, BertConfig, BertModel

from mexma_export.parity.figures import compare
from mexma_export.parity.reference import Reference, load_reference
from mexma_runtime.errors import CheckpointError, EncoderClosedError, InputError, MissingDependencyError
from mexma_runtime.types import Pooling, Ragged, Vectors

TEXTS = [
    "A short sentence.",
    "",
    "  \t spaces around, and NUL \0 within \n ",
    "long " * 600,
    "Ein Satz auf Deutsch; \u4e00\u53e5\u8bdd; \u0645\u0631\u062d\u0628\u0627 \U0001f469\u200d\U0001f680",
    "CAPITALS and a word that nobody knows: floccinaucinihilipilification",
    "A short sentence.",
]
SHORT = [text for text in TEXTS if len(text) < 100]


@pytest.fixture(scope="module")
def minilm(minilm_folder: Path) -> Reference:
    return load_reference(minilm_folder, pooling=Pooling.MEAN, normalize=True, max_tokens=256)


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """A one-layer BERT with a case-sensitive tokenizer, in sentence-transformers' layout."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "Hello", "WORLD"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = NFC()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path / "tiny"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
        initializer_range=0.5,  # so that a word matters
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 6, "do_lower_case": True})
    write(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ],
    )
    (folder / "1_Pooling").mkdir()
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 16, "pooling_mode_cls_token": True})
    return folder


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def load_tiny(folder: Path, **changes: Any) -> Reference:
    settings: dict[str, Any] = {"pooling": Pooling.CLS, "normalize": False, "max_tokens": 6}
    return load_reference(folder, **settings | changes)


def assert_same(vectors: Vectors, expected: Vectors) -> None:
    figures = compare(vectors, expected)
    assert figures.cosine_min >= 0.9999999
    assert figures.max_abs_difference <= 2e-6


def test_minilm_is_what_sentence_transformers_computes(minilm: Reference, minilm_folder: Path) -> None:
    theirs = SentenceTransformer(str(minilm_folder), device="cpu", local_files_only=True)
    vectors = minilm.encode(TEXTS, batch_size=3)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), minilm.dim) == (7, 384)
    assert_same(vectors, theirs.encode(TEXTS, show_progress_bar=False))
    assert minilm.attention == "sdpa"
    assert minilm.versions.torch == torch.__version__


@pytest.mark.parametrize("padding_id", [None, -1])
def test_bert_needs_no_padding_id(tiny_folder: Path, padding_id: int | None) -> None:
    with load_tiny(tiny_folder) as reference:
        expected = reference.encode_ids([[2, 5, 3], [2, 3]])
    config = json.loads((tiny_folder / "config.json").read_text(encoding="utf-8"))
    write(tiny_folder / "config.json", config | {"pad_token_id": padding_id})
    with load_tiny(tiny_folder) as reference:
        assert_same(reference.encode_ids([[2, 5, 3], [2, 3]]), expected)


def test_do_lower_case_is_what_sentence_transformers_makes_of_it(tiny_folder: Path) -> None:
    texts = ["Hello WORLD", "hello world", "hello " * 9, "", "hello there WORLD"]
    theirs = SentenceTransformer(str(tiny_folder), device="cpu", local_files_only=True)
    vectors = load_tiny(tiny_folder, lower_case=True).encode(texts)
    assert_same(vectors, theirs.encode(texts, show_progress_bar=False))
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-6
    cased = load_tiny(tiny_folder).encode(texts)
    assert np.abs(cased[0] - cased[1]).max() > 0.1


def test_lower_case_keeps_the_tokenizers_own_normalizer(tiny_folder: Path) -> None:
    for own, expected in ((NFC(), 2), (Chain([NFC(), NFC()]), 3), (None, 1)):
        tokenizer = Tokenizer.from_file(str(tiny_folder / "tokenizer.json"))
        tokenizer.normalizer = own
        tokenizer.save(str(tiny_folder / "tokenizer.json"))
        chain = load_tiny(tiny_folder, lower_case=True)._tokenizer.backend_tokenizer.normalizer
        assert len(list(chain)) == expected
        assert chain.normalize_str("E\u0301") == ("e\u0301" if own is None else "\u00e9")


@pytest.mark.parametrize(("pooling", "normalize"), [(Pooling.CLS, True), (Pooling.MEAN, False)])
def test_pooling_by_hand(minilm_folder: Path, minilm: Reference, pooling: Pooling, normalize: bool) -> None:
    """One sentence at a time, so nothing is padded: the mean is a plain mean."""
    model = AutoModel.from_pretrained(minilm_folder, local_files_only=True)
    ids = [minilm._tokenizer(text, truncation=True, max_length=256)["input_ids"] for text in SHORT]
    with torch.inference_mode():
        tokens = [model(input_ids=torch.tensor([row])).last_hidden_state[0].numpy() for row in ids]
    expected = np.stack([t[0] if pooling is Pooling.CLS else t.mean(axis=0) for t in tokens])
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    reference = load_reference(minilm_folder, pooling=pooling, normalize=normalize, max_tokens=256)
    for vectors in (
        reference.encode(SHORT),
        reference.encode_ids(ids, batch_size=3),
        reference.encode_ids(Ragged.from_sequences(ids)),
    ):
        figures = compare(vectors, expected)
        assert figures.cosine_min >= 0.9999999
        assert figures.max_abs_difference <= 1e-5


def test_sorting_and_batching_keep_the_input_order(minilm: Reference) -> None:
    calls: list[tuple[int, int]] = []
    vectors = minilm.encode(
        SHORT, batch_size=4, sort_by_length=True, progress=lambda done, total: calls.append((done, total))
    )
    assert_same(vectors, minilm.encode(SHORT, batch_size=1))
    assert calls == [(4, 6), (6, 6)]
    assert minilm.encode([]).shape == (0, 384)


def test_ids_are_checked(minilm: Reference) -> None:
    for bad in ([], [101] * 257):
        with pytest.raises(InputError, match=f"input 1: expected 1 to 256 tokens, got {len(bad)}"):
            minilm.encode_ids([[101, 102], bad])


def test_a_closed_reference_says_so(tiny_folder: Path) -> None:
    with load_tiny(tiny_folder) as reference:
        reference.encode(["hello"])
    with pytest.raises(EncoderClosedError):
        reference.encode(["hello"])
    with pytest.raises(EncoderClosedError):
        reference.encode_ids([[2, 3]])


def test_threads(tiny_folder: Path) -> None:
    before = torch.get_num_threads()
    try:
        assert load_tiny(tiny_folder, threads=before + 1).threads == torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_loading_prints_nothing_and_restores_the_settings(tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The folder lacks the pooler, which transformers would report at length."""
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_tiny(tiny_folder).encode(["hello world", "hello " * 20])
    assert capfd.readouterr() == ("", "")
    assert before == (logging.get_verbosity(), logging.is_progress_bar_enabled())


def test_weights_that_do_not_fit_are_all_named(tiny_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(tiny_folder / "model.safetensors")
    del tensors["encoder.layer.0.output.dense.bias"]
    tensors["encoder.layer.1.output.dense.bias"] = torch.zeros(16)
    tensors["embeddings.word_embeddings.weight"] = torch.zeros(8, 16)
    tensors["lm_head.bias"] = torch.zeros(9)  # a head: no part of the vector
    save_file(tensors, tiny_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load_tiny(tiny_folder)
    assert caught.value.problems == [
        "tensor encoder.layer.0.output.dense.bias is missing",
        "tensor encoder.layer.1.output.dense.bias is unexpected",
        "tensor embeddings.word_embeddings.weight has shape (8, 16), expected (9, 16)",
    ]


@pytest.mark.parametrize("damage", ["no weights", "cut weights", "no config", "bad config"])
def test_a_damaged_checkpoint_is_refused(tiny_folder: Path, damage: str) -> None:
    weights, config = tiny_folder / "model.safetensors", tiny_folder / "config.json"
    match damage:
        case "no weights":
            weights.unlink()
        case "cut weights":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "no config":
            config.unlink()
        case "bad config":
            config.write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="tiny: transformers cannot load it"):
        load_tiny(tiny_folder)


def test_a_tokenizer_from_elsewhere(tiny_folder: Path, tmp_path: Path) -> None:
    """Without its file transformers would make up a tokenizer that knows no word."""
    texts = ["hello world", "hello"]
    expected = load_tiny(tiny_folder).encode(texts)
    elsewhere = tmp_path / "tokenizer"
    elsewhere.mkdir()
    (tiny_folder / "tokenizer.json").rename(elsewhere / "tokenizer.json")
    (tiny_folder / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"tiny: no tokenizer: expected one of tokenizer.json, vocab.txt"):
        load_tiny(tiny_folder)
    assert_same(load_tiny(tiny_folder, tokenizer=elsewhere).encode(texts), expected)


def test_without_torch_the_extra_is_named(tiny_folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        with pytest.raises(MissingDependencyError, match=r"transformers is not installed.*mexma-runtime\[reference\]"):
            load_tiny(tiny_folder)


def test_importing_the_module_imports_no_torch() -> None:
    listed = "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    code = f"import sys, mexma_export.parity.reference; {listed}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
