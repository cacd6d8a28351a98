"""What can be proven of a tokenizer about cutting a text into pieces that are tokenized one after the other.

A tokenizer finds added tokens ("<mask>") in the text, normalises what lies between them, splits that into words, and
runs its model on each word alone. `split_rules` reads these steps, and claims nothing where it does not know one.

A *hard cut* is a place where a text can be cut into two that are tokenized apart. It is in front of a character at
which words end whatever stands around it: white space, or for BertPreTokenizer punctuation and Chinese characters. Why:
 - No added token straddles it: none contains white space, and none may touch a cut at other characters. Tokens that
   take along the white space after them (`rstrip`) are not supported. Those that take what is before them (`lstrip`)
   do not reach the cut's left side, or take white space there that changes nothing: where it could, as it becomes part
   of what is before it (Precompiled), is a token (Metaspace) or is counted (Replace), a cut is not after white space.
 - Normalising does not reach over it. NFC, NFD, NFKC, NFKD: white space and punctuation are starters that compose with
   nothing before them, and white space with nothing after it. BertNormalizer, Lowercase, Nmt, StripAccents go
   character by character. Precompiled goes by grapheme clusters, which end before white space unless something is
   prepended to it, and after it if what follows extends no cluster. Strip and Replace go by runs of white space: where
   it is not dropped, a cut has to be at a single one, between characters that do not become white space themselves.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram

# Insides of regular expression classes; tests/unit/runtime/text/test_split_rules.py checks what is said of them.
HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufa6d\U00020000-\U0002a6df"
LETTERS = (
    r"0-9A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u0391-\u03a1\u03a3-\u03f5\u0400-\u0481\u048a-\u052f"
    r"\u0531-\u0556\u05d0-\u05ea\u0620-\u063f\u0641-\u064a\u0660-\u0669\u0671-\u06d3\u0904-\u0939\u0993-\u09a8"
    r"\u0a13-\u0a28\u0a93-\u0aa8\u0b13-\u0b28\u0c12-\u0c28\u0c92-\u0ca8\u0d12-\u0d3a\u0d9a-\u0db1\u0e01-\u0e30"
    r"\u0e40-\u0e45\u0e8c-\u0ea3\u0f49-\u0f6c\u1000-\u102a\u10d0-\u10fa\u1200-\u1248\u1260-\u1288\u12d8-\u1310"
    r"\u1318-\u135a\u1780-\u17b3\u1e00-\u1f15\u2d30-\u2d67\u3041-\u3096\u30a1-\u30fa\u3105-\u312f\ua016-\ua48c"
    r"\uac00-\ud7a3\ue000-\uf8ff\uff21-\uff3a\uff41-\uff5a\U00012000-\U00012399\U00013000-\U0001342e"
    r"\U0001d400-\U0001d454"
)
SYMBOLS = (
    r"\u20a0-\u20c0\u2190-\u2307\u2500-\u2767\u2794-\u27c4"
    r"\U0001f300-\U0001f3fa\U0001f400-\U0001f6d7\U0001f900-\U0001fa53"
)
PUNCTUATION = (
    r"!-/:-@\[-`{-~\u2010-\u2016\u2018-\u2027\u2030-\u2043\u3001-\u3003\u3008-\u3011"
    r"\uff01-\uff03\uff05-\uff0a\uff0c-\uff0f"
)
STEADY = HAN + LETTERS + SYMBOLS + PUNCTUATION
"""Starters that are second in no canonical composition, and alone between each other in their grapheme cluster."""
EXPANDING = r"\u3300-\u33ff\ufb00-\ufb06\ufdf0-\ufdfb"
"""Squared words, ligatures, Arabic phrases: as steady, and a normaliser may make several characters of them."""
GLUE = r"\u200c\u200d\ufe0e\ufe0f\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff"
"""What holds emoji sequences together: starters in no composition, of three or four bytes. After a character of three
bytes, a cluster with one has at least six, and Precompiled takes such clusters character by character."""
PREPENDED = r"\u0600-\u0605\u06dd\u070f\u0890-\u089f\u08e2\u0d4e\U00011000-\U00011fff"
"""All that starts a grapheme cluster with what follows (and more)."""
_SPACES = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_CONTROLS = "".join(map(chr, [*range(9), *range(14, 32), *range(127, 160)]))
_FORMATS = "\xad\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2061\u2062\u2063\u2064\ufeff\ufffd"
MARKS = "".join(map(chr, [*range(0x300, 0x34F), *range(0x350, 0x370), *range(0x591, 0x5BE), *range(0x64B, 0x660)]))
"""Marks that are no starters."""

_BY_CHARACTER = {"BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt"}
_DROP_SPACES = {"WhitespaceSplit", "Whitespace", "BertPreTokenizer"}


@dataclass(frozen=True, kw_only=True)
class SplitRules:
    """What is known of one tokenizer. Patterns are None where it does not allow what they are for."""

    cuts: re.Pattern[str]
    """Matches the character after a hard cut; one that is not white space only counts if no added token touches it."""
    is_strict: bool
    """Whether a hard cut also needs the character before it to become something that does not end in white space."""
    spaces: str
    """White space that ends words."""
    contents: tuple[str, ...]
    """The added tokens, as they are and normalised."""
    reach: int
    """Characters in the longest added token, at least 8."""
    squeezed: re.Pattern[str] | None
    """A run of white space, of which two characters at the beginning and one at the end (two groups) do as well."""
    deleted: re.Pattern[str] | None
    """The same of characters that the normaliser deletes."""
    inner: re.Pattern[str] | None
    """Unigram: a character that the text may be cut in front of, within a word."""
    expanding: re.Pattern[str] | None
    """A character that may be written as what the normaliser makes of it, if no added token has a part of that."""


def split_rules(tokenizer: Tokenizer) -> SplitRules | None:
    """Read off the tokenizer what is proven for it; None if nothing is."""
    steps, splitters = _described(tokenizer)
    added = tokenizer.get_added_tokens_decoder().values()
    contents = {token.content for token in added}
    contents |= {normalized(tokenizer, token.content) for token in added if token.normalized} - {""}
    if (
        not _are_known(steps, splitters)
        or any(token.rstrip for token in added)
        or any(char.isspace() for content in contents for char in content)
    ):
        return None
    kinds = {step["type"] for step in steps}
    drops_spaces = splitters[0]["type"] in _DROP_SPACES
    bert = kinds in ({"BertNormalizer"}, {"BertNormalizer", "Lowercase"})
    plain = not any(token.normalized for token in added)

    spaces = "".join(char for char in _SPACES if words(tokenizer, f"a{char}a") == ["a", "a"])
    if words(tokenizer, "a\r\na") != ["a", "a"]:
        spaces = spaces.replace("\r", "")
    squeezable = spaces if drops_spaces else ""
    if "Replace" in kinds:
        gap = normalized(tokenizer, "a  a")
        squeezable = "".join(c for c in spaces if {normalized(tokenizer, f"a{c * n}a") for n in (2, 3)} == {gap})
    removable = _CONTROLS + (_FORMATS + MARKS if bert else "")
    deleted = "".join(char for char in removable if normalized(tokenizer, f"a{char}a") == "aa")
    if any(char in content for char in deleted for content in contents):
        deleted = ""

    cuts = f"[{spaces}]"
    is_strict = not drops_spaces or any(step.get("content") == "\u2581" for step in steps)
    if is_strict:
        cuts += rf"(?<=[{STEADY}][{spaces}])(?=[{STEADY}]|\Z)"
    elif "Precompiled" in kinds:
        taken = r"\s" if any(token.lstrip for token in added) else ""
        cuts += rf"(?<=[^\r{PREPENDED}{taken}][{spaces}])(?=[{STEADY}{spaces}]|\Z)"
    if bert and plain and [splitter["type"] for splitter in splitters] == ["BertPreTokenizer"]:
        han = HAN if words(tokenizer, "a\u4e00a") == ["a", "\u4e00", "a"] else ""
        cuts += rf"|[{PUNCTUATION}{han}](?=[{STEADY}{spaces}]|\Z)"
    glue = rf"(?<=[\u0800-\U0010ffff])[{GLUE}]" if "Precompiled" in kinds else f"[{GLUE}]"
    has_unigrams = isinstance(tokenizer.model, Unigram) and tokenizer.token_to_id("<0x00>") is None
    return SplitRules(
        cuts=re.compile(cuts),
        is_strict=is_strict,
        spaces=spaces,
        contents=tuple(sorted(contents)),
        reach=max([8, *map(len, contents)]),
        squeezed=_run_of(squeezable),
        deleted=_run_of(deleted),
        inner=re.compile(f"(?:[{STEADY}{_CONTROLS}]|{glue})") if has_unigrams else None,
        # A token that is a single word looks at its neighbours before they are normalised.
        expanding=None
        if any(token.single_word for token in added)
        else _between(f"[{EXPANDING}]", STEADY + EXPANDING + spaces),
    )


def normalized(tokenizer: Tokenizer, text: str) -> str:
    """`text` as the model sees it, before it is split into words."""
    return text if tokenizer.normalizer is None else str(tokenizer.normalizer.normalize_str(text))


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words of `text`, without the Metaspace in front."""
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str(normalized(tokenizer, text))
    return [word for piece, _ in pieces if (word := piece.lstrip("\u2581"))]


def _are_known(steps: list[dict[str, Any]], splitters: list[dict[str, Any]]) -> bool:
    def is_known(step: dict[str, Any]) -> bool:
        if step["type"] == "Strip":
            return not step["strip_left"]
        if step["type"] == "Replace":
            return step["pattern"] == {"Regex": " {2,}"} and step["content"] in (" ", "\u2581")
        return step["type"] in _BY_CHARACTER or step["type"] == "Precompiled"

    kinds = {step["type"] for step in steps}
    return (
        all(map(is_known, steps))
        and not ("BertNormalizer" in kinds and kinds & {"Strip", "Replace"})
        and bool(splitters)
        and splitters[0]["type"] in _DROP_SPACES | {"Metaspace"}
        and all(s["type"] in _DROP_SPACES | {"Metaspace", "Punctuation", "Digits"} for s in splitters)
        and all(s["split"] and s["replacement"] == "\u2581" for s in splitters if s["type"] == "Metaspace")
    )


def _described(tokenizer: Tokenizer) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The steps of the normaliser and of the pre-tokenizer, as tokenizer.json has them."""
    shell = Tokenizer(BPE())  # written out, the tokenizer itself would bring its vocabulary along
    if tokenizer.normalizer is not None:
        shell.normalizer = tokenizer.normalizer
    if tokenizer.pre_tokenizer is not None:
        shell.pre_tokenizer = tokenizer.pre_tokenizer
    described = json.loads(shell.to_str())
    return _flat(described["normalizer"], "normalizers"), _flat(described["pre_tokenizer"], "pretokenizers")


def _flat(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return [inner for item in step[key] for inner in _flat(item, key)] if step["type"] == "Sequence" else [step]


def _between(char: str, neighbours: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![^{neighbours}]){char}(?=[{neighbours}]|\Z)")


def _run_of(characters: str) -> re.Pattern[str] | None:
    return re.compile(f"([{characters}]{{2}})[{characters}]+([{characters}])") if characters else None
