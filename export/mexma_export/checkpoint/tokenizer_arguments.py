"""What transformers calls a tokenizer's class with: tokenizer_config.json and what other files put in its place.

PreTrainedTokenizerBase._from_pretrained and `__init__` of version 5.23, step by step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mexma_export.checkpoint.json_files import read_object
from mexma_export.checkpoint.settings_keys import (
    SPECIAL_TOKENS,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    judge_keys,
)
from mexma_export.checkpoint.tokenizer_families import Family

if TYPE_CHECKING:
    from tokenizers import AddedToken

CONFIG_FILE = "tokenizer_config.json"
MAP_FILE = "special_tokens_map.json"
EXTRA, ADDITIONAL = "extra_special_tokens", "additional_special_tokens"


@dataclass(frozen=True, kw_only=True)
class TokenizerArguments:
    """What the files beside tokenizer.json say, as transformers puts it together."""

    values: Mapping[str, Any]
    custom_tokens: Mapping[str, Any] = field(default_factory=dict)
    """More tokens by name, as files hold them."""
    added_tokens: Mapping[str, Any] = field(default_factory=dict)
    """added_tokens.json."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Key -> the file whose word holds."""
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def content(self, name: str, family: Family) -> str | None:
        """The text of one of SPECIAL_TOKENS, of a file or of the `family`; None where a file says null."""
        token = self.values.get(name, family.tokens.get(name))
        text: str | None = token["content"] if isinstance(token, dict) else token
        return text

    def tokens(self, family: Family | None, *, padding_token: str | None) -> list[AddedToken]:
        """All special tokens, in the order in which transformers adds those that are not there.

        `padding_token` is the one of tokenizer.json's padding, which a general class has unless a file names another.
        """
        defaults = family.tokens if family else {"pad_token": padding_token}
        own = {name: self.values.get(name, defaults.get(name)) for name in SPECIAL_TOKENS}
        extra = self.values.get(EXTRA if EXTRA in self.values else ADDITIONAL)
        if extra is None and EXTRA not in self.values and family:
            extra = family.extra
        named = [_added(token, is_named=True) for token in (own | dict(self.custom_tokens)).values() if token]
        return [*named, *(_added(token) for token in extra or ())]


def read_arguments(folder: Path, overrides: Mapping[str, Any]) -> TokenizerArguments:
    """Of the files of a tokenizer's folder; `overrides`: tokenizer_args or processor_kwargs, their keys judged."""
    config = read_object(folder / CONFIG_FILE)
    problems, warnings = judge_keys(CONFIG_FILE, config, TOKENIZER_CONFIG)
    special, added = {}, {}
    if config.get("added_tokens_decoder") is None and overrides.get("added_tokens_decoder") is None:
        special, added = read_object(folder / MAP_FILE), read_object(folder / "added_tokens.json")
    found = judge_keys(MAP_FILE, special, SPECIAL_TOKENS_MAP)
    problems, warnings = [*problems, *found[0]], [*warnings, *found[1]]
    files = {CONFIG_FILE: config, "sentence_bert_config.json": overrides, MAP_FILE: special}
    origins = {key: name for name, content in files.items() for key in content}
    if problems:
        return TokenizerArguments(values=config, problems=tuple(problems), warnings=tuple(warnings))
    values, custom_tokens = _merged(config, overrides, special)
    return TokenizerArguments(
        values=values, custom_tokens=custom_tokens, added_tokens=added, origins=origins, warnings=tuple(warnings)
    )


def _merged(
    config: Mapping[str, Any], overrides: Mapping[str, Any], special: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The class's arguments, and of them the tokens that it has no argument for."""
    values = {**config, **overrides}
    if ADDITIONAL in values and not values.get(EXTRA):
        values[EXTRA] = values.pop(ADDITIONAL)
    explicit = {key: values.pop(key) for key in list(values) if _is_custom(key) and isinstance(values[key], str)}
    explicit |= _pop_named(values)
    for key, value in special.items():
        if overrides.get(key):
            continue
        if isinstance(value, list):
            before = (values.get(key) or []) if key == EXTRA else []
            values[key] = [*before, *map(_typed, value)]
        else:
            values[key] = value if key == EXTRA else _typed(value)
    explicit |= _pop_named(values)
    custom = {key: value for key, value in values.items() if _is_custom(key) and _is_token(value)}
    return values, custom | explicit


def _is_custom(key: str) -> bool:
    return key.endswith("_token") and key not in SPECIAL_TOKENS


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and value.get("__type") == "AddedToken")


def _pop_named(values: dict[str, Any]) -> dict[str, Any]:
    """Take extra tokens that have names out of the arguments."""
    named: dict[str, Any] = values.pop(EXTRA) if isinstance(values.get(EXTRA), dict) else {}
    return named


def _typed(value: Any) -> Any:
    """What an object of special_tokens_map.json is: a token, and special whatever it says."""
    return {**value, "__type": "AddedToken", "special": True} if isinstance(value, dict) else value


def _added(token: Any, *, is_named: bool = False) -> AddedToken:
    """A token as the library has it."""
    from tokenizers import AddedToken

    if isinstance(token, str):
        return AddedToken(token, special=True)
    added = AddedToken(**{flag: value for flag, value in token.items() if flag != "__type"})
    if is_named:
        added.special = True
    return added
