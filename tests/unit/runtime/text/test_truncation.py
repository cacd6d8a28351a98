# ruff: noqa: RUF001 - look-alikes are what is tested
from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from mexma_runtime.errors import InputError
from mexma_runtime.text import truncation
from mexma_runtime.text.split_rules import split_rules
from mexma_runtime.text.truncation import TextCutter

SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "la vie est belle et courte, n'est-ce pas",
    "я люблю тебя больше жизни",
    "今天天气很好我们去公园",
    "東京は日本の首都です",
    "안녕하세요 세계 여러분",
    "مرحبا بالعالم اليوم",
    "नमस्ते दुनिया कैसे हो",
    "aaaa aaaaaa aaa haha hahaha -=-=-= 0123456789 2024-10-11",
    "e\u0301\u0301\u0301 a\u0301\u0301 \u0301\u0301\u0301 x\u0323\u0301 s\u200ds\u200d 👨\u200d👩\u200d👧 😀😀 ❤\ufe0f",
]
CHARSMAP = {
    "\u3000": " ",
    "\n": " ",
    "\x01": "",
    "ﬁ": "fi",
    "a\u0301": "á",
    "\u200b": " ",
    "Ａ": "A",
    "ſ": "s",
    "™": "TM",
    "ﷺ": "صلى الله عليه وسلم",
    "㍿": "株式会社",
    " \u0301": "´",  # white space that a mark takes away
    "\u0600 ": "x",  # and one that a prepended sign takes away
}
UNITS = [
    *" \t\n\r\u3000\u00a0\u2003\u200b\x85\0\x01\ufffd\u00ad\u200d\ufe0f\ue000",
    *"\u0301\u0323\u034f\u302f\u0941\u3099\u0600\u0d4e\u0e33",
    *"aabbzAÉİß19.,!?-_'\"[]<>中国日がカ가각\u1100\u1161\u11a8ㄱㅏﾊﾞﬁⅧ½™ﷺ㍿㎯ſ≠▁…😀👨❤🏽🇫𒀀",
    *[
        "<s>",
        "<pad>",
        "<mask>",
        " <mask>",
        "<unk>",
        "[MASK]",
        "[UNK]",
        "[MA",
        "SK]",
        "aab",
        "中b",
        "\r\n",
        "👨\u200d👩\u200d👧",
    ],
    *["aaa", "the ", " quick", "今天", "я ", " a", "a ", "नमस्ते ", "مرحبا ", "ſ\u200d", " \u0301", "\u0600 "],
]
PLAIN_UNITS = [
    "a",
    "b",
    "the",
    " quick",
    "今天",
    "aaa",
    "ha",
    "😀",
    "𒀀",
    "é",
    "A",
    "1",
    "!",
    "中",
    "я",
    "\u0301",
    "\0",
    "ＡＢ",
]


def charsmap(table: dict[str, str]) -> bytes:
    """SentencePiece's precompiled normaliser: a double array of the keys' bytes, then the values."""
    trie: dict[int | None, Any] = {}
    values, units, bases = b"", {0: 0}, set[int]()
    for key, value in sorted(table.items()):
        node = trie
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[None] = len(values)
        values += value.encode() + b"\0"

    def place(position: int, node: dict[int | None, Any]) -> None:
        free = (b for b in range(1, 1 << 20) if b not in bases and all(b ^ (byte or 0) not in units for byte in node))
        bases.add(base := next(free))
        units[position] |= (position ^ base) << 10 | (0x100 if None in node else 0)
        units.update({base ^ (byte or 0): byte or 0 for byte in node})
        for byte, child in node.items():
            if byte is None:
                units[base] = child | 1 << 31
            else:
                place(base ^ byte, child)

    place(0, trie)
    array = [units.get(i, 0) for i in range(max(units) + 256)]
    return struct.pack(f"<I{len(array)}I", 4 * len(array), *array) + values


def unigram(
    normalizer: normalizers.Normalizer | None,
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    *,
    whole_scores: bool = False,
    added: tuple[AddedToken, ...] = (),
) -> Tokenizer:
    """A Unigram tokenizer as XLM-R has it, trained on shuffled `SENTENCES`."""
    shuffle = random.Random(0)
    words = [sentence.split() for sentence in SENTENCES]
    lines = [" ".join(shuffle.sample(line, len(line))) for line in words for _ in range(50)]
    tokenizer = Tokenizer(models.Unigram())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    if whole_scores:  # so that many segmentations score the same
        described = json.loads(tokenizer.to_str())
        described["model"]["vocab"] = [[piece, round(score)] for piece, score in described["model"]["vocab"]]
        tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special[:4]])
    tokenizer.add_special_tokens([AddedToken("<mask>", normalized=False, lstrip=True)])
    tokenizer.add_tokens(list(added))
    return tokenizer


def wordpiece(minilm_folder: Path, **model: int) -> Tokenizer:
    described = json.loads((minilm_folder / "tokenizer.json").read_text(encoding="utf-8"))
    described["model"].update(model)
    tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def metaspace() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Metaspace(prepend_scheme="always")


def split_metaspace() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace()])


def precompiled(*more: normalizers.Normalizer) -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Precompiled(charsmap(CHARSMAP)), *more])


ADDED = (
    AddedToken("aab", normalized=False),
    AddedToken("É中", normalized=True),
    AddedToken("qu", normalized=True, lstrip=True),
    AddedToken("ha", normalized=False, single_word=True),
)
UNIGRAMS: dict[str, Callable[[], Tokenizer]] = {
    "nfkc": lambda: unigram(normalizers.NFKC(), split_metaspace()),
    "precompiled": lambda: unigram(precompiled(), split_metaspace()),
    "precompiled, squeezed": lambda: unigram(
        precompiled(normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")), metaspace()
    ),
    "nfd, spaces kept": lambda: unigram(normalizers.NFD(), metaspace()),
    "ties": lambda: unigram(normalizers.NFKC(), split_metaspace(), whole_scores=True),
    "added tokens": lambda: unigram(normalizers.NFKC(), split_metaspace(), added=ADDED),
}
NAMES = ["minilm", "minilm, short words", *UNIGRAMS]


@pytest.fixture(scope="module")
def tokenizers(minilm_folder: Path) -> dict[str, Tokenizer]:
    return {
        "minilm": wordpiece(minilm_folder),
        "minilm, short words": wordpiece(minilm_folder, max_input_chars_per_word=6),
        **{name: make() for name, make in UNIGRAMS.items()},
    }


def cutter(tokenizer: Tokenizer, step: int, *, max_whole_chars: int = 1 << 20) -> TextCutter:
    rules = split_rules(tokenizer)
    assert rules is not None
    return TextCutter(tokenizer, rules, step=step, max_whole_chars=max_whole_chars)


def whole(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def texts() -> st.SearchStrategy[str]:
    counts = st.sampled_from([1, 1, 1, 2, 3, 10, 40, 100, 300])
    units = st.lists(st.sampled_from(UNITS), min_size=1, max_size=4).map("".join) | st.sampled_from(PLAIN_UNITS)
    return st.lists(st.tuples(units, counts).map(lambda run: run[0] * run[1]), max_size=12).map("".join)


@pytest.mark.parametrize("name", NAMES)
def test_cutting_changes_no_id(tokenizers: dict[str, Tokenizer], name: str) -> None:
    tokenizer = tokenizers[name]
    cutters = {step: cutter(tokenizer, step) for step in (1, 4, 20, 80)}

    @settings(max_examples=300)
    @given(text=texts(), n_wanted=st.sampled_from([1, 2, 5, 30, 100]), step=st.sampled_from(sorted(cutters)))
    def check(text: str, n_wanted: int, step: int) -> None:
        assert cutters[step].first_ids(text, n_wanted) == whole(tokenizer, text)[:n_wanted]

    check()


EDGES = {
    "a word of 10 kinds of deleted characters": "a" + "\ufe0f" * 900 + "b c",
    "a mark that composes": "e" + "\u0301" * 3000,
    "a mark that is reordered from the end": "x" + "\u0301" * 3000 + "\u0323 the",
    "unknown characters, then a tie": "𒀀" * 3000 + "aaaaa the",
    "unknown characters that end a word": "the𒀀" + "𒀀𒀁" * 3000 + " the quick",
    "a run that breaks a tie at its end": "the " + "a" * 4999 + " quick",
    "another length": "the " + "a" * 5000 + " quick",
    "a run of two": "ha" * 3001 + "h",
    "a run of three, not to the end of the word": "-=-" * 2000 + "the",
    "two characters that normalise to one": "ſ\u200d" * 2000,
    "one character that normalises to two": "™" * 2000 + "a",
    "one character that normalises to four words": "ﷺ" * 2000 + "a",
    "characters that normalise to many": "ﬁﷺ㍿㎯" * 600 + "\u0301 the",
    "such characters beside what they may not touch": "ﷺ\u0301\u0600ﷺ<mask>ﷺ ﷻﬁ[MASK]ﬁ" * 300,
    "an added token far behind a space": "the" + " " * 3000 + "<mask> the",
    "white space between a sign and an added token": "the\u0600   <mask> " * 300,
    "an added token in a long word": "a" * 2000 + "aab" + "a" * 2000,
    "an added token at every cut": "[MASK]" * 500 + "<mask>" * 500,
    "white space that is not": "the\u0600 quick \u0301 " * 300,
    "white space of which both ends are not": "the\u0600    \u0301quick " * 300,
    "line ends": "the\r\nquick\r\n\r\n" * 300,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", EDGES.values(), ids=EDGES.keys())
def test_edges(tokenizers: dict[str, Tokenizer], name: str, text: str) -> None:
    expected = whole(tokenizers[name], text)
    for step in (3, 30, 150):
        for n_wanted in (1, 4, 60, len(expected) + 1):
            assert cutter(tokenizers[name], step).first_ids(text, n_wanted) == expected[:n_wanted]


def shuffled(parts: Sequence[str], n: int) -> str:
    return "".join(random.Random(0).choices(parts, k=n))


CUT = {
    "prose": shuffled([f"{sentence}. " for sentence in SENTENCES], 5_000),
    "prose of one sentence": "hello world, " * 15_000,
    "ideographs": shuffled([*"今天天气很好我们去公园東京は日本の首都です", "。"], 200_000),
    "json": shuffled([f'{{"a{n}":{n},"bb":[2,3]}},' for n in range(50)], 10_000),
    "spaces": " " * 200_000,
    "line ends": "\r\n" * 100_000,
    "a space now and then": ("a" * 20_000 + " ") * 10,
}
EXPANDED = {
    "spaces in what one character becomes": "ﷺ" * 30_000,
    "such characters among others": "ﬁﷺ㍿①" * 10_000,
}
"""Where the normaliser makes more of them."""
WHOLE = {
    "one letter": "a" * 200_001,
    "two letters": "ha" * 100_000,
    "one mark": "\u0301" * 200_000,
    "emoji": "😀" * 100_000,
    "emoji sequences": "👨\u200d👩\u200d👧" * 20_000,
    "unknown characters": "𒀀𒀁𒀂" * 40_000,
    "nul": "\0" * 200_000,
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param(name, text, id=f"{kind}-{name}")
        for kind, text in (CUT | EXPANDED).items()
        for name in ("minilm", "nfkc", "precompiled")
        if name != "minilm" or kind in CUT
    ],
)
def test_long_texts_are_tokenized_in_pieces(
    tokenizers: dict[str, Tokenizer], name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def encode_batch(tokenizer: Tokenizer, batch: list[str], **options: bool) -> Any:
        seen.extend(map(len, batch))
        return encode(tokenizer, batch, **options)

    encode, step, n_wanted = truncation.encode_batch, 1024, 64
    monkeypatch.setattr(truncation, "encode_batch", encode_batch)
    ids = cutter(tokenizers[name], step).first_ids(text, n_wanted)
    assert 0 < max(seen) <= 20 * step
    assert ids == whole(tokenizers[name], text)[:n_wanted]


@pytest.mark.parametrize("name", ["minilm", "nfkc", "precompiled"])
@pytest.mark.parametrize("text", WHOLE.values(), ids=WHOLE.keys())
def test_what_cannot_be_cut_is_tokenized_whole_up_to_a_bound(
    tokenizers: dict[str, Tokenizer], name: str, text: str
) -> None:
    """Or its first ids are known from its beginning: a guess there is never."""
    expected = whole(tokenizers[name], text)[:64]
    assert cutter(tokenizers[name], 1024).first_ids(text, 64) == expected
    bounded = cutter(tokenizers[name], 1024, max_whole_chars=50_000)
    try:
        ids = bounded.first_ids(text, 64)
    except InputError:
        with pytest.raises(InputError, match=rf"input 7: {len(text):,} characters without .*, and at most 50,000 are"):
            bounded.first_ids(text, 64, index=7)
    else:
        assert ids == expected


def test_the_bound_is_met_to_the_character(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["minilm"]
    bounded = cutter(tokenizer, 1024, max_whole_chars=100_000)
    assert bounded.first_ids("a" * 100_000, 3) == whole(tokenizer, "a" * 100_000)[:3]
    with pytest.raises(InputError, match="100,001 characters"):
        bounded.first_ids("a" * 100_001, 3)
    with pytest.raises(InputError, match="100,001 characters"):  # the space is the first of them
        bounded.first_ids("the quick " + "a" * 100_000, 60)
    # What comes after the last id that is kept is never looked at.
    prose = "the quick " * 1000
    assert bounded.first_ids(prose + "a" * 100_001, 60) == whole(tokenizer, prose)[:60]
