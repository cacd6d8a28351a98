from __future__ import annotations

import re
import sys
import unicodedata

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from mexma_runtime.text.split_rules import (
    EXPANDING,
    GLUE,
    HAN,
    LETTERS,
    MARKS,
    PREPENDED,
    PUNCTUATION,
    STEADY,
    SYMBOLS,
    split_rules,
)

JAMO = range(0x1100, 0x1200), range(0xA960, 0xA980), range(0xD7B0, 0xD800)
SPACING_LETTERS = "\u0e33\u0eb3"  # UAX 29: letters that extend a grapheme cluster
PREPENDED_SIGNS = [*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0xD4E, 0x110BD, 0x110CD, 0x111C2, 0x111C3]


def members(inside: str) -> list[str]:
    pattern = re.compile(f"[{inside}]")
    return [char for char in map(chr, range(sys.maxunicode + 1)) if pattern.match(char)]


@pytest.fixture(scope="module")
def seconds() -> set[str]:
    """Characters that compose with what is before them."""
    parts = [unicodedata.decomposition(chr(point)).split() for point in range(sys.maxunicode + 1)]
    found = {chr(int(code, 16)) for part in parts if part and not part[0].startswith("<") for code in part[1:]}
    return found | {chr(point) for block in JAMO for point in block}


def test_steady_characters_are_alone(seconds: set[str]) -> None:
    for char in members(STEADY + EXPANDING):
        assert unicodedata.combining(char) == 0
        assert char not in seconds
        assert char not in SPACING_LETTERS
        assert not 0x1F1E6 <= ord(char) <= 0x1F1FF
        assert unicodedata.category(char)[0] in "LNPS" or unicodedata.category(char) in ("Co", "Cn")
        assert unicodedata.category(char) != "Lm" or char in "\u02b0"
        assert not (unicodedata.category(char) == "Sk" and ord(char) > 0x1F000)
        assert not char.isspace()


def test_glue_is_long_and_composes_with_nothing(seconds: set[str]) -> None:
    for char in members(GLUE):
        assert len(char.encode()) >= 3
        assert unicodedata.combining(char) == 0
        assert char not in seconds


def test_classes_are_what_they_are_called(seconds: set[str]) -> None:
    assert all(unicodedata.category(char)[0] == "P" or char in "$+<=>^`|~" for char in members(PUNCTUATION))
    assert not any(unicodedata.category(char)[0] in "PZ" for char in members(HAN + LETTERS + SYMBOLS))
    assert all(unicodedata.combining(char) for char in MARKS)
    assert {chr(point) for point in PREPENDED_SIGNS} <= set(members(PREPENDED))
    assert not set(members(PREPENDED + EXPANDING)) & set(members(STEADY))


def tokenizer(normalizer: Normalizer | None, pre_tokenizer: PreTokenizer | None, *added: AddedToken) -> Tokenizer:
    made = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    if normalizer is not None:
        made.normalizer = normalizer
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    made.add_tokens(list(added))
    return made


SPLIT, METASPACE = pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()


@pytest.mark.parametrize(
    "unknown",
    [
        tokenizer(None, None),
        tokenizer(None, pre_tokenizers.ByteLevel()),
        tokenizer(None, pre_tokenizers.Metaspace(split=False)),
        tokenizer(None, pre_tokenizers.Metaspace(replacement="_")),
        tokenizer(None, pre_tokenizers.Punctuation()),
        tokenizer(normalizers.Prepend("_"), SPLIT),
        tokenizer(normalizers.Strip(left=True, right=True), METASPACE),
        tokenizer(normalizers.Replace(Regex(r"a\s+b"), "ab"), METASPACE),
        tokenizer(normalizers.Sequence([normalizers.BertNormalizer(), normalizers.Strip(left=False)]), METASPACE),
        tokenizer(None, SPLIT, AddedToken("a", rstrip=True)),
        tokenizer(None, SPLIT, AddedToken("a b")),
        tokenizer(normalizers.NFKC(), SPLIT, AddedToken("a\u00a8", normalized=True)),
    ],
    ids=lambda made: f"{made.normalizer} {made.pre_tokenizer}",
)
def test_nothing_is_claimed_of_unknown_steps(unknown: Tokenizer) -> None:
    assert split_rules(unknown) is None


def test_models_whose_words_cannot_be_looked_into() -> None:
    bytes_model = models.Unigram([("<unk>", 0.0), ("<0x00>", -1.0)], unk_id=0, byte_fallback=True)
    for model in (bytes_model, models.BPE(), models.WordLevel({"<unk>": 0}, unk_token="<unk>")):
        made = Tokenizer(model)
        made.pre_tokenizer = SPLIT
        rules = split_rules(made)
        assert rules is not None
        assert rules.cuts.search("a b") is not None
        assert rules.inner is None
