from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from mexma_export.checkpoint.standin import STANDINS, write_standin
from mexma_export.checkpoint.standin_tokenizer import N_PIECES, tokenizer_json, train
from mexma_export.corpus.sample import load_sample

TOKENIZER = Tokenizer.from_str(tokenizer_json().decode())
SPECIAL = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": N_PIECES - 1}
TEXTS = [line.text for line in load_sample()]


@pytest.fixture(scope="module", params=["tiny", "tiny-bert"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_standin(request.param, tmp_path_factory.mktemp("standin") / request.param)


def test_ids_are_laid_out_as_xlm_r_does() -> None:
    assert {token: TOKENIZER.token_to_id(token) for token in SPECIAL} == SPECIAL
    assert TOKENIZER.get_vocab_size() == N_PIECES
    assert len(tokenizer_json()) < 1 << 20


def test_every_standin_has_a_row_for_every_id() -> None:
    assert all(standin.model.vocab_size >= N_PIECES for standin in STANDINS.values())


def test_the_template_is_xlm_rs() -> None:
    first, second = (
        TOKENIZER.encode("water", add_special_tokens=False),
        TOKENIZER.encode("bread", add_special_tokens=False),
    )
    assert TOKENIZER.encode("water").ids == [0, *first.ids, 2]
    assert TOKENIZER.encode("water", "bread").ids == [0, *first.ids, 2, 2, *second.ids, 2]
    assert TOKENIZER.encode("").ids == [0, 2]


def test_the_sample_has_no_unknown_piece_and_survives_decoding() -> None:
    for text in TEXTS:
        ids = TOKENIZER.encode(text).ids
        assert SPECIAL["<unk>"] not in ids, text
        assert TOKENIZER.decode(ids) == " ".join(unicodedata.normalize("NFKC", text).replace("\u200c", " ").split())


def test_training_gives_the_layout_and_the_pipeline_of_the_shipped_file() -> None:
    shipped, trained = json.loads(tokenizer_json()), json.loads(train(TEXTS[:40], 500).to_str())
    vocab = trained["model"].pop("vocab")
    assert 100 < len(vocab) <= 500
    assert [piece for piece, _ in vocab[:4]] == list(SPECIAL)[:4]
    assert vocab[-1] == ["<mask>", 0.0]
    del shipped["model"]["vocab"]
    shipped["added_tokens"][-1]["id"] = trained["added_tokens"][-1]["id"]
    assert trained == shipped


def test_transformers_gives_the_same_ids(folder: Path) -> None:
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))

    @given(st.text() | st.sampled_from([*TEXTS, "a <mask> b</s>", "\x00", " \u3000 ", "ﬁ①Ａ", "e\u0301"]))
    def same(text: str) -> None:
        assert theirs(text)["input_ids"] == ours.encode(text).ids

    same()
    assert theirs(["one", "two three"], padding=True)["input_ids"][0][-1] == SPECIAL["<pad>"]
    assert theirs.model_max_length == 512
    named = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    assert {role: getattr(theirs, f"{role}_token_id") for role in named} == {r: SPECIAL[t] for r, t in named.items()}
