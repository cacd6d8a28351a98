# ruff: noqa: RUF001 - look-alikes are what is tested
from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from mexma_runtime.errors import BundleError, InputError, TextTooLongError, UsageError
from mexma_runtime.text import tokenizer as tokenizer_module
from mexma_runtime.text.tokenizer import TextTokenizer, Tokenized, TokenizerSpec

SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "la vie est belle et courte",
    "я люблю тебя больше жизни",
    "今天天气很好我们去公园",
    "안녕하세요 세계 여러분",
    "مرحبا بالعالم اليوم",
]
NASTY = [
    "",
    " ",
    "\t\n  \u3000",
    "hi",
    "a\0b",
    "\0",
    "مرحبا بالعالم \u202eabc\u202c",
    "👨\u200d👩\u200d👧\u200d👦 ❤\ufe0f 🏳\ufe0f\u200d🌈 🇫🇷",
    "<s> hello </s><pad>  <mask> x<unk>",
    "[CLS] hello [SEP][PAD] [MASK] [UNK]",
    "e\u0301 e\u0323\u0301 \u0301",
    "ﬁ ＡＢ ① ﷺ \u00a0 \ufeff",
    "the Quick BROWN İstanbul " * 40,
    "中文" * 100,
    "a" * 500,
    "𒀀" * 200 + " dog",
]
Encode = Callable[[list[str]], list[list[int]]]


@pytest.fixture(scope="module")
def xlmr_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer like XLM-R's, trained here, that transformers loads as its tokenizer.json has it."""
    folder = tmp_path_factory.mktemp("xlmr")
    shuffle = random.Random(0)
    words = [sentence.split() for sentence in SENTENCES]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator((" ".join(shuffle.sample(line, len(line))) for line in words * 50), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special[:4]])
    tokenizer.add_special_tokens([AddedToken("<mask>", normalized=False, lstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    config = {f"{role}_token": token for role, token in roles.items()}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=["minilm", "xlmr"])
def folder(request: pytest.FixtureRequest, minilm_folder: Path, xlmr_folder: Path) -> Path:
    return minilm_folder if request.param == "minilm" else xlmr_folder


def reference(folder: Path, max_tokens: int, *, lower_case: bool = False) -> Encode:
    """transformers' ids without padding; `lower_case` is done as sentence-transformers does it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if lower_case:
        steps = [normalizers.Lowercase(), tokenizer.backend_tokenizer.normalizer]
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(steps)

    def encode(texts: list[str]) -> list[list[int]]:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=max_tokens, return_tensors="np")
        masks = batch["attention_mask"].astype(bool)
        return [row[mask].tolist() for row, mask in zip(batch["input_ids"], masks, strict=True)]

    return encode


def load(folder: Path, max_tokens: int = 16, *, lower_case: bool = False) -> TextTokenizer:
    return TextTokenizer(folder / "tokenizer.json", TokenizerSpec(max_tokens=max_tokens, lower_case=lower_case))


def rows(tokenized: Tokenized) -> list[list[int]]:
    return [tokenized.ragged[row].tolist() for row in range(len(tokenized.ragged))]


@pytest.mark.parametrize("max_tokens", [3, 7, 128, 512])
@pytest.mark.parametrize("lower_case", [False, True])
def test_ids_are_the_references(folder: Path, max_tokens: int, lower_case: bool) -> None:
    ours = load(folder, max_tokens, lower_case=lower_case)
    expected = reference(folder, max_tokens, lower_case=lower_case)(NASTY)
    assert rows(ours.encode(NASTY)) == expected
    assert [rows(ours.encode([text]))[0] for text in NASTY] == expected


def test_any_text_is_as_in_the_reference(folder: Path) -> None:
    ours, theirs = load(folder, 12), reference(folder, 12)
    pieces = st.sampled_from([*NASTY[:12], *SENTENCES, "<mask>", " [MASK]", "中", "x" * 120])

    @given(texts=st.lists(st.text(max_size=30) | st.lists(pieces, max_size=20).map("".join), min_size=1, max_size=5))
    def check(texts: list[str]) -> None:
        assert rows(ours.encode(texts)) == theirs(texts)

    check()


def test_types_of_the_result(folder: Path) -> None:
    tokenized = load(folder).encode(["hi", "", "the quick brown fox " * 9])
    assert tokenized.ragged.ids.dtype == np.int32
    assert tokenized.ragged.offsets.dtype == np.int64
    assert tokenized.truncated.tolist() == [False, False, True]
    assert tokenized.ragged.lengths[1:].tolist() == [2, 16]


def test_no_texts(folder: Path) -> None:
    tokenized = load(folder).encode([])
    assert len(tokenized.ragged) == tokenized.truncated.size == 0


def test_the_files_padding_and_truncation_are_switched_off(minilm_folder: Path) -> None:
    described = json.loads((minilm_folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert described["padding"]["strategy"] == {"Fixed": 128}
    assert described["truncation"]["max_length"] == 128
    assert load(minilm_folder, 256).encode(["hi", "hi " * 500]).ragged.lengths.tolist() == [3, 256]


@pytest.mark.parametrize("n_words", [14, 15, 5000])
def test_truncated_means_that_tokens_are_missing(minilm_folder: Path, n_words: int) -> None:
    tokenized = load(minilm_folder).encode(["hi " * n_words, "hi"])
    assert tokenized.truncated.tolist() == [n_words > 14, False]


@pytest.mark.parametrize("n_words", [15, 5000])
def test_truncation_can_be_refused(minilm_folder: Path, n_words: int) -> None:
    texts = ["hi " * 14, "hi", "hi " * n_words]
    assert not load(minilm_folder).encode(texts[:2], truncate=False).truncated.any()
    with pytest.raises(TextTooLongError, match=r"input 102: more than 16 tokens") as caught:
        load(minilm_folder).encode(texts, truncate=False, first_index=100)
    assert caught.value.index == 102


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ab\ud83d", r"character 2 is '\\ud83d', half of a surrogate pair"),
        ("\udc00" + "a " * 5000, r"character 0 is '\\udc00'"),
        ("a " * 5000 + "\udc00", r"character 10000 is '\\udc00'"),
    ],
)
@pytest.mark.parametrize("others", [0, 3])
def test_what_is_not_unicode_is_named(folder: Path, text: str, message: str, others: int) -> None:
    with pytest.raises(InputError, match=rf"input {others + 7}: {message}") as caught:
        load(folder).encode(["a"] * others + [text] + ["\ud800"] * others, first_index=7)
    assert caught.value.index == others + 7


def test_long_and_short_texts_keep_their_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*NASTY, "the quick brown fox " * 500, "dog", "the 今天 " * 1000, *NASTY]
    expected = reference(folder, 16)(texts)
    assert rows(load(folder).encode(texts)) == expected
    monkeypatch.setattr(tokenizer_module, "MAX_BATCH_CHARS", 20)
    assert rows(load(folder).encode(texts)) == expected


def test_threads_share_a_tokenizer(folder: Path) -> None:
    ours, texts = load(folder), ["the quick brown fox " * 500, *NASTY]
    expected = rows(ours.encode(texts))
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(ours.encode, texts) for _ in range(12)]
        assert all(rows(future.result()) == expected for future in futures)


def test_a_tokenizer_without_rules_is_used_as_it_is(xlmr_folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(xlmr_folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    shutil.copytree(xlmr_folder, tmp_path, dirs_exist_ok=True)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = ["the quick brown fox " * 500, "dog"]
    assert rows(load(tmp_path).encode(texts)) == reference(tmp_path, 16)(texts)


@pytest.mark.parametrize(("max_tokens", "error"), [(2, BundleError), (1, BundleError), (0, UsageError)])
def test_a_limit_without_room_is_refused(folder: Path, max_tokens: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="max_tokens"):
        load(folder, max_tokens)


@pytest.mark.parametrize("content", ["", "{}", '{"version": "1.0"}', None])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(BundleError, match=r"tokenizer\.json: tokenizers .* cannot read it"):
        load(tmp_path)


def change(folder: Path, tmp_path: Path, **parts: Any) -> Path:
    described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(described | parts), encoding="utf-8")
    return tmp_path


def test_truncation_on_the_left_is_refused(folder: Path, tmp_path: Path) -> None:
    truncation = {"max_length": 9, "strategy": "LongestFirst", "stride": 0, "direction": "Left"}
    with pytest.raises(BundleError, match="beginning"):
        load(change(folder, tmp_path, truncation=truncation))


def test_special_tokens_are_read_off_the_file(xlmr_folder: Path, tmp_path: Path) -> None:
    special = {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in (("<s>", 0), ("</s>", 2))}
    order = ["<s>", "<s>", None, "</s>", "<s>", "</s>"]
    single: list[dict[str, Any]] = [
        {"Sequence": {"id": "A", "type_id": 0}} if name is None else {"SpecialToken": {"id": name, "type_id": 0}}
        for name in order
    ]
    template = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special}
    changed = load(change(xlmr_folder, tmp_path, post_processor=template), 7)
    for text in ("the", "the quick brown fox", "the quick brown fox " * 500):
        (ids,) = rows(changed.encode([text]))
        assert ids[:2] == [0, 0]
        assert ids[-3:] == [2, 0, 2]
        assert len(ids) <= 7
    assert rows(load(change(xlmr_folder, tmp_path, post_processor=None), 7).encode([""])) == [[]]


def test_a_tokenizer_without_ids_for_text_is_refused(xlmr_folder: Path, tmp_path: Path) -> None:
    nothing = {"type": "Replace", "pattern": {"Regex": "."}, "content": ""}
    with pytest.raises(BundleError, match="special tokens around a text"):
        load(change(xlmr_folder, tmp_path, normalizer=nothing))


def test_lower_case_is_not_done_twice(xlmr_folder: Path, tmp_path: Path) -> None:
    lower = {"type": "Lowercase"}
    for name, normalizer in (("a", lower), ("b", {"type": "Sequence", "normalizers": [{"type": "NFC"}, lower]})):
        (tmp_path / name).mkdir()
        folder = change(xlmr_folder, tmp_path / name, normalizer=normalizer)
        assert rows(load(folder, 99, lower_case=True).encode(NASTY)) == rows(load(folder, 99).encode(NASTY))


@pytest.mark.parametrize("truncate", [True, False])
def test_a_text_that_cannot_be_cut_has_a_bound(minilm_folder: Path, truncate: bool) -> None:
    spec = TokenizerSpec(max_tokens=16, lower_case=False, max_whole_chars=5000)
    tokenizer = TextTokenizer(minilm_folder / "tokenizer.json", spec)
    tokenizer.encode(["a" * 5000])
    with pytest.raises(InputError, match=r"input 12: 5,001 characters without a place .* at most 5,000 are") as told:
        tokenizer.encode(["a", "b c", "a" * 5001], truncate=truncate, first_index=10)
    assert told.value.index == 12


def test_the_bound_holds_for_a_tokenizer_that_nothing_is_known_of(tmp_path: Path) -> None:
    model = models.BPE({"a": 0, "<s>": 1}, [], unk_token="<s>")
    unknown = Tokenizer(model)
    unknown.save(str(tmp_path / "tokenizer.json"))
    spec = TokenizerSpec(max_tokens=16, lower_case=False, max_whole_chars=5000)
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json", spec)
    assert tokenizer.encode(["a" * 5000]).truncated.all()
    with pytest.raises(InputError, match="input 1: 5,001 characters"):
        tokenizer.encode(["a", "a" * 5001])


def test_the_bound_is_at_least_one() -> None:
    with pytest.raises(UsageError, match="max_whole_chars: expected 1 or more, got 0"):
        TokenizerSpec(max_tokens=16, lower_case=False, max_whole_chars=0)
