"""The tokenizer that transformers makes of a checkpoint's files, as one tokenizer.json.

transformers 5 takes tokenizer.json as it stands for its general classes alone. For a class of a family, which is also
what it takes where no class is named, it keeps vocabulary, added tokens and the first charsmap, and makes the rest anew
from tokenizer_config.json: TokenizersBackend.convert_to_native_format and the classes' own `__init__` in version 5.23.
Version 4 does so for BERT, and takes the file of the others.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mexma_export.checkpoint.config import ModelConfig
from mexma_export.checkpoint.json_files import is_lfs_pointer, read_object
from mexma_export.checkpoint.settings_keys import TOKENIZER_CONFIG, judge_keys
from mexma_runtime.errors import file_errors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GENERAL = ("PreTrainedTokenizer", "TokenizersBackend")
"""Classes that take tokenizer.json as it stands; `Fast` behind a name changes nothing."""
BY_MODEL_TYPE = {
    "xlm-roberta": "XLMRobertaTokenizer",
    "roberta": "RobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "bert": "BertTokenizer",
}
ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
"""Of an added token."""

Settings = Mapping[str, Any]
"""tokenizer_config.json, with what other files put in its place."""


@dataclass(frozen=True, kw_only=True)
class CheckpointTokenizer:
    """What a bundle gets as its tokenizer, and what is to be said of it."""

    json: bytes
    """tokenizer.json: the file's own bytes, where transformers makes no other tokenizer of it."""
    largest_id: int = 0
    """Of all that it gives, where there are no problems."""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Family:
    """How transformers makes a tokenizer of one class."""

    model: str
    """Its model, in tokenizer.json's words."""
    model_values: Mapping[str, Any]
    """What it gives the model, whatever the file says."""
    tokens: Mapping[str, str]
    """Special tokens that it has unless a file names others."""
    around: tuple[str, str]
    """Those before and after a text."""
    pipeline: Callable[[Settings, bytes | None], tuple[Any, Any]]
    """Settings and the file's charsmap -> normalizer and pre-tokenizer."""
    extra: tuple[str, ...] = ()
    """More special tokens, unless additional_special_tokens names others."""
    is_rebuilt_by_4: bool = False
    """Whether transformers 4 makes the pipeline anew too."""


def read_tokenizer(path: Path, config: ModelConfig, *, model_type: str, overrides: Settings) -> CheckpointTokenizer:
    """The tokenizer of the tokenizer.json at `path` and the files beside it; `overrides`: of tokenizer_config.json."""
    from tokenizers import Tokenizer

    with file_errors(path, "cannot be read"):
        content = path.read_bytes()
    try:
        tokenizer = Tokenizer.from_str(content.decode("utf-8"))
        described = json.loads(content)
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        reason = "it is a pointer of Git LFS: download the file itself" if is_lfs_pointer(path) else error
        return CheckpointTokenizer(
            json=content, problems=[f"{path.name}: the tokenizers library cannot read it: {reason}"]
        )
    settings, problems, warnings = _settings(path.parent, overrides)
    for what in ("truncation", "padding"):
        if (described.get(what) or {}).get("direction", "Right") != "Right":
            problems.append(f"{path.name}: {what} at the left: expected at the right")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    name = settings.get("tokenizer_class") or _class_of_config(path.parent) or BY_MODEL_TYPE.get(model_type, "")
    name = str(name).removesuffix("Fast")
    family = FAMILIES.get(name)
    if family is None and name not in GENERAL:
        problems.append(
            f"tokenizer_config.json: tokenizer_class {name}: expected one of {', '.join((*FAMILIES, *GENERAL))}: where "
            "the model was trained with tokenizer.json as it stands, name PreTrainedTokenizerFast there"
        )
    problems += _contradictions(settings, described, is_family=family is not None)
    changed: list[str] = []
    if family and not problems:
        problems += _model_problems(name, family, described["model"])
        if not problems:
            changed = _rebuild(tokenizer, family, settings, described)
    if changed and family and not family.is_rebuilt_by_4:
        warnings.append(
            f"tokenizer_config.json: transformers 5 makes a {name} with a {' and '.join(changed)} of its own, not "
            "tokenizer.json's, and so has this bundle. Vectors made with transformers 4 differ for some texts, such as "
            "those that end in white space"
        )
    largest_id = 0
    if not problems:
        changed += _add_tokens(tokenizer, settings, family, described, config.vocab_size)
        largest_id = max([*tokenizer.get_vocab(with_added_tokens=True).values(), *tokenizer.encode("").ids], default=0)
        if config.n_token_types > 1 and any(tokenizer.encode("a").type_ids):
            problems.append(f"{path.name}: a single text has token types other than 0, which are not written")
    if changed:
        content = tokenizer.to_str().encode()
    return CheckpointTokenizer(json=content, largest_id=largest_id, problems=problems, warnings=warnings)


def _settings(folder: Path, overrides: Settings) -> tuple[dict[str, Any], list[str], list[str]]:
    """What transformers reads beside tokenizer.json, and what is wrong with its keys and unknown of them."""
    stored = read_object(folder / "tokenizer_config.json")
    problems, warnings = judge_keys("tokenizer_config.json", _known_tokens_aside(stored), TOKENIZER_CONFIG)
    settings = stored | dict(overrides)
    if settings.get("added_tokens_decoder") is None:  # else transformers reads neither of the two
        settings |= read_object(folder / "special_tokens_map.json")
        settings["added_tokens.json"] = read_object(folder / "added_tokens.json")
    return settings, problems, warnings


def _known_tokens_aside(settings: Settings) -> dict[str, Any]:
    """Without keys such as image_token, which name tokens as the others do."""
    return {key: value for key, value in settings.items() if key in TOKENIZER_CONFIG or not key.endswith("_token")}


def _class_of_config(folder: Path) -> str | None:
    name = read_object(folder / "config.json").get("tokenizer_class")
    return name if isinstance(name, str) else None


def _contradictions(settings: Settings, described: Mapping[str, Any], *, is_family: bool) -> list[str]:
    """Added tokens that the other files have otherwise than tokenizer.json."""
    there = {token["id"]: token for token in described.get("added_tokens") or []}
    contents = {token["content"] for token in there.values()}
    problems = [
        f"added_tokens.json: token {token!r} is not among tokenizer.json's: save the tokenizer again by transformers"
        for token in settings.get("added_tokens.json") or {}
        if token not in contents
    ]
    decoder = settings.get("added_tokens_decoder")
    if decoder is None:
        return problems
    decoded = {int(token_id): token for token_id, token in decoder.items()}
    for token_id in sorted(decoded.keys() | (there.keys() if is_family else set())):
        ours, theirs = (
            {flag: token.get(flag, False) for flag in FLAGS} if token else None
            for token in (there.get(token_id), decoded.get(token_id))
        )
        if ours != theirs:
            problems.append(
                f"tokenizer_config.json: added_tokens_decoder has {theirs or 'nothing'} as token {token_id}, and "
                f"tokenizer.json {ours or 'nothing'}: save the tokenizer again by transformers"
            )
    return problems


def _model_problems(name: str, family: Family, model: Mapping[str, Any]) -> list[str]:
    """Why the model of a tokenizer.json is not what a class takes or makes of it."""
    if model.get("type", family.model) != family.model:
        return [
            f"tokenizer_config.json: tokenizer_class {name} (said there, in config.json, or by model_type) takes a "
            f"model of kind {family.model}, and tokenizer.json holds {model['type']}: name PreTrainedTokenizerFast "
            "there, where tokenizer.json is right"
        ]
    return [
        f"tokenizer.json: model.{key} {model[key]!r}: expected {expected!r}, as transformers 5 makes it of {name}"
        for key, expected in family.model_values.items()
        if model.get(key, expected) != expected
    ]


def _rebuild(tokenizer: Tokenizer, family: Family, settings: Settings, described: Mapping[str, Any]) -> list[str]:
    """Give the tokenizer what the class makes anew; the names of what was changed."""
    from tokenizers import processors

    changed = []
    normalizer, pre_tokenizer = family.pipeline(settings, _charsmap(described.get("normalizer")))
    if _state(tokenizer.normalizer) != _state(normalizer):
        tokenizer.normalizer = normalizer
        changed.append("normalizer")
    if _state(tokenizer.pre_tokenizer) != _state(pre_tokenizer):
        tokenizer.pre_tokenizer = pre_tokenizer
        changed.append("pre-tokenizer")
    first, last = (_content(settings.get(name)) or family.tokens[name] for name in family.around)
    ids = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    inner = tokenizer.encode("a", add_special_tokens=False).ids
    if tokenizer.encode("a").ids != [ids[0][1], *inner, ids[1][1]] and None not in (ids[0][1], ids[1][1]):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}", pair=f"{first} $A {last} {last} $B {last}", special_tokens=ids
        )
        changed.append("post-processor")
    return changed


def _add_tokens(
    tokenizer: Tokenizer,
    settings: Settings,
    family: Family | None,
    described: Mapping[str, Any],
    vocab_size: int,
) -> list[str]:
    """Make the tokens that other files name special ones, as transformers does; not those without an embedding.

    Returns those that were none before.
    """
    from tokenizers import AddedToken

    there = {token["content"] for token in described.get("added_tokens") or []}
    named: dict[str, str | None] = dict(family.tokens if family else {})
    named |= {key: _content(value) for key, value in settings.items() if key.endswith("_token") and value}
    extra: list[Any] = []
    if family and settings.get("additional_special_tokens") is None:
        extra += family.extra
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = settings.get(key) or []
        extra += value.values() if isinstance(value, dict) else value
    added = []
    for token in dict.fromkeys([*named.values(), *map(_content, extra)]):
        if token is None or token in there:
            continue
        token_id = tokenizer.token_to_id(token)
        if (tokenizer.get_vocab_size() if token_id is None else token_id) < vocab_size:
            tokenizer.add_special_tokens([AddedToken(token, special=True)])
            added.append(token)
    return added


def _content(token: Any) -> str | None:
    """The text of a token, which files hold as such or as an object with its flags."""
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) and value else None


def _charsmap(normalizer: Any) -> bytes | None:
    """Of the first Precompiled in a normalizer."""
    if not isinstance(normalizer, dict):
        return None
    steps = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
    found = (step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled")
    charsmap = next(found, None)
    return base64.b64decode(charsmap) if charsmap is not None else None


def _state(component: Any) -> Any:
    """What a component of a tokenizer does, to compare; offsets, which no id depends on, are left out."""
    if component is None:
        return None
    state = json.loads(component.__getstate__())
    while state.get("type") == "Sequence":
        (steps,) = (value for key, value in state.items() if key != "type")
        if len(steps) != 1:
            break
        state = steps[0]
    return {key: value for key, value in state.items() if key != "trim_offsets"}


def _sentencepiece(settings: Settings, charsmap: bytes | None) -> tuple[Any, Any]:
    from tokenizers import normalizers, pre_tokenizers

    scheme = "never" if settings.get("add_prefix_space") is False else "always"
    metaspace = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme)
    normalizer = normalizers.Precompiled(charsmap) if charsmap is not None else None
    return normalizer, pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])


def _byte_level(settings: Settings, charsmap: bytes | None) -> tuple[Any, Any]:
    from tokenizers import pre_tokenizers

    return None, pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space")))


def _word_piece(settings: Settings, charsmap: bytes | None) -> tuple[Any, Any]:
    from tokenizers import normalizers, pre_tokenizers

    normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars") is not False,
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case") is not False,
    )
    return normalizer, pre_tokenizers.BertPreTokenizer()


FAMILIES = {
    "XLMRobertaTokenizer": Family(
        model="Unigram",
        model_values={"unk_id": 3, "byte_fallback": False},
        tokens=ROBERTA_TOKENS,
        around=("bos_token", "eos_token"),
        pipeline=_sentencepiece,
    ),
    "CamembertTokenizer": Family(
        model="Unigram",
        model_values={"byte_fallback": False},
        tokens=ROBERTA_TOKENS,
        around=("bos_token", "eos_token"),
        pipeline=_sentencepiece,
        extra=("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"),
    ),
    "RobertaTokenizer": Family(
        model="BPE",
        model_values={"dropout": None, "byte_fallback": False, "ignore_merges": False},
        tokens=ROBERTA_TOKENS,
        around=("cls_token", "sep_token"),
        pipeline=_byte_level,
    ),
    "BertTokenizer": Family(
        model="WordPiece",
        model_values={"continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
        tokens=BERT_TOKENS,
        around=("cls_token", "sep_token"),
        pipeline=_word_piece,
        is_rebuilt_by_4=True,
    ),
}
"""By the name of the class."""
