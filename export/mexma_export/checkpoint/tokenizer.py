"""The tokenizer that transformers makes of a checkpoint's files, as one tokenizer.json.

transformers 5 takes tokenizer.json as it stands for its general classes alone. For a class of a family, which is also
what it takes where no class is named, it keeps vocabulary, added tokens and the first charsmap, and makes the rest anew
from the arguments that other files give. Version 4 does so for BERT, and takes the file of the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mexma_export.checkpoint.config import ModelConfig
from mexma_export.checkpoint.json_files import is_lfs_pointer, read_object
from mexma_export.checkpoint.settings_keys import TOKEN_FLAGS
from mexma_export.checkpoint.tokenizer_arguments import TokenizerArguments, read_arguments
from mexma_export.checkpoint.tokenizer_families import FAMILIES, Family, charsmap_of
from mexma_runtime.errors import BundleError, file_errors
from mexma_runtime.text.tokenizer import TextTokenizer, TokenizerSpec

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

GENERAL = ("PreTrainedTokenizer", "TokenizersBackend")
"""Classes that take tokenizer.json as it stands; `Fast` behind a name changes nothing."""
BY_MODEL_TYPE = {
    "xlm-roberta": "XLMRobertaTokenizer",
    "roberta": "RobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "bert": "BertTokenizer",
}
RARE_LETTER = "\u16a0"
"""A rune, which hardly any vocabulary has."""


@dataclass(frozen=True, kw_only=True)
class CheckpointTokenizer:
    """What a bundle gets as its tokenizer, and what is to be said of it."""

    json: bytes
    """tokenizer.json: the file's own bytes, where transformers makes no other tokenizer of it."""
    largest_id: int = 0
    """Of all that it gives, where there are no problems."""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_tokenizer(
    path: Path, config: ModelConfig, *, model_type: str, overrides: Mapping[str, Any]
) -> CheckpointTokenizer:
    """The tokenizer of the tokenizer.json at `path` and the files beside it; `overrides`: of tokenizer_config.json."""
    from tokenizers import Tokenizer

    with file_errors(path, "cannot be read"):
        content = path.read_bytes()
    problems: list[str] = []
    with library_errors(problems, f"{path.name}: the tokenizers library cannot read it"):
        tokenizer = Tokenizer.from_str(content.decode("utf-8"))
        described = json.loads(content)
    if problems:
        if is_lfs_pointer(path):
            problems = [f"{path.name}: it is a pointer of Git LFS: download the file itself"]
        return CheckpointTokenizer(json=content, problems=problems)
    arguments = read_arguments(path.parent, overrides)
    for what in ("truncation", "padding"):
        if (described.get(what) or {}).get("direction", "Right") != "Right":
            problems.append(f"{path.name}: {what} at the left: expected at the right")
    if described["model"].get("dropout"):
        problems.append(f"{path.name}: model.dropout {described['model']['dropout']}: expected null: tokens are random")
    name = str(arguments.values.get("tokenizer_class") or _class_of_config(path.parent) or BY_MODEL_TYPE[model_type])
    name = name.removesuffix("Fast")
    family = FAMILIES.get(name)
    problems += arguments.problems or _contradictions(arguments, described, is_family=family is not None)
    if family:
        problems += _family_problems(name, family, arguments, described["model"]) if not arguments.problems else []
    elif name not in GENERAL:
        problems.append(
            f"tokenizer_config.json: tokenizer_class {name}: expected one of {', '.join((*FAMILIES, *GENERAL))}: where "
            "the model was trained with tokenizer.json as it stands, name PreTrainedTokenizerFast there"
        )
    warnings = list(arguments.warnings)
    if problems:
        return CheckpointTokenizer(json=content, problems=problems, warnings=warnings)
    largest_id = 0
    with library_errors(problems, path.name):
        tokenizer.no_padding()
        tokenizer.no_truncation()
        changed = _rebuild(tokenizer, family, arguments, described) if family else []
        tokens = arguments.tokens(family, padding_token=(described.get("padding") or {}).get("pad_token"))
        is_extended = _add_tokens(tokenizer, tokens, described, config.vocab_size)
        if family and _surround(tokenizer, family, arguments, problems):
            changed.append("post-processor")
        if changed and family and not family.is_rebuilt_by_4:
            warnings.append(
                f"tokenizer_config.json: transformers 5 makes a {name} with a {' and '.join(changed)} of its own, not "
                "tokenizer.json's, and so has this bundle. Vectors made with transformers 4 differ for some texts, "
                "such as those that end in white space"
            )
        largest_id = max([*tokenizer.get_vocab(with_added_tokens=True).values(), *tokenizer.encode("").ids], default=0)
        if config.n_token_types > 1 and any(tokenizer.encode("a").type_ids):
            problems.append(f"{path.name}: a single text has token types other than 0, which are not written")
        if changed or is_extended:
            content = tokenizer.to_str().encode()
    return CheckpointTokenizer(json=content, largest_id=largest_id, problems=problems, warnings=warnings)


def try_tokenizer(content: bytes, spec: TokenizerSpec) -> list[str]:
    """Why the runtime could not tokenize with a tokenizer.json."""
    problems: list[str] = []
    try:
        with library_errors(problems, "tokenizer.json"):
            TextTokenizer(Path("tokenizer.json"), spec, content=content).encode([RARE_LETTER])
    except BundleError as error:
        problems.append(str(error))
    return problems


@contextmanager
def library_errors(problems: list[str], what: str) -> Iterator[None]:
    """Whatever the tokenizers library raises, its panics too, becomes a problem."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, BundleError):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic is no Exception, and the library raises nothing narrower
        problems.append(f"{what}: {error}")


def _class_of_config(folder: Path) -> str | None:
    name = read_object(folder / "config.json").get("tokenizer_class")
    return name if isinstance(name, str) else None


def _contradictions(arguments: TokenizerArguments, described: Mapping[str, Any], *, is_family: bool) -> list[str]:
    """Added tokens that the other files have otherwise than tokenizer.json."""
    there = {token["id"]: token for token in described.get("added_tokens") or []}
    contents = {token["content"] for token in there.values()}
    problems = [
        f"added_tokens.json: token {token!r} is not among tokenizer.json's: save the tokenizer again by transformers"
        for token in arguments.added_tokens
        if token not in contents
    ]
    decoder = arguments.values.get("added_tokens_decoder")
    if decoder is None:
        return problems
    decoded = {int(token_id): token for token_id, token in decoder.items()}
    for token_id in sorted(decoded.keys() | (there.keys() if is_family else set())):
        ours, theirs = (
            {flag: token.get(flag, False) for flag in TOKEN_FLAGS} if token else None
            for token in (there.get(token_id), decoded.get(token_id))
        )
        if ours != theirs:
            problems.append(
                f"tokenizer_config.json: added_tokens_decoder has {theirs or 'nothing'} as token {token_id}, and "
                f"tokenizer.json {ours or 'nothing'}: save the tokenizer again by transformers"
            )
    return problems


def _family_problems(name: str, family: Family, arguments: TokenizerArguments, model: Mapping[str, Any]) -> list[str]:
    """Why a class's tokens and the model of a tokenizer.json are not what a class takes or makes of it."""
    if model.get("type", family.model) != family.model:
        return [
            f"tokenizer_config.json: tokenizer_class {name} (said there, in config.json, or by model_type) takes a "
            f"model of kind {family.model}, and tokenizer.json holds {model['type']}: name PreTrainedTokenizerFast "
            "there, where tokenizer.json is right"
        ]
    needed = {key: arguments.content(key, family) for key in (*family.around, "unk_token")}
    problems = [
        f"{arguments.origins[key]}: {key} null: expected a token, which {name} cannot do without"
        for key, token in needed.items()
        if token is None
    ]
    expected_values = family.model_values(needed["unk_token"] or "", model)
    return problems or [
        f"tokenizer.json: model.{key} {model.get(key)!r}: expected {expected!r}, as transformers 5 makes it of {name}"
        for key, expected in expected_values.items()
        if (model.get(key) or None) != (expected or None)
    ]


def _rebuild(
    tokenizer: Tokenizer, family: Family, arguments: TokenizerArguments, described: Mapping[str, Any]
) -> list[str]:
    """Give the tokenizer the pipeline that the class makes anew; the names of what was changed."""
    changed = []
    normalizer, pre_tokenizer = family.pipeline(arguments.values, charsmap_of(described.get("normalizer")))
    if _state(tokenizer.normalizer) != _state(normalizer):
        tokenizer.normalizer = normalizer
        changed.append("normalizer")
    if _state(tokenizer.pre_tokenizer) != _state(pre_tokenizer):
        tokenizer.pre_tokenizer = pre_tokenizer
        changed.append("pre-tokenizer")
    return changed


def _surround(tokenizer: Tokenizer, family: Family, arguments: TokenizerArguments, problems: list[str]) -> bool:
    """Put the class's tokens around a text; whether others were there. A token without an id is a problem."""
    from tokenizers import processors

    first, last = (arguments.content(name, family) or "" for name in family.around)
    ids = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    if missing := [token for token, token_id in ids if token_id is None]:
        problems.append(f"tokenizer.json: no token {' and '.join(map(repr, missing))}, which goes around every text")
        return False
    inner = tokenizer.encode("a", add_special_tokens=False).ids
    if tokenizer.encode("a").ids == [ids[0][1], *inner, ids[1][1]]:
        return False
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} {last} $B {last}", special_tokens=ids
    )
    return True


def _add_tokens(tokenizer: Tokenizer, tokens: list[AddedToken], described: Mapping[str, Any], vocab_size: int) -> bool:
    """Make `tokens` special ones, as transformers does, but not those without an embedding; whether some were none."""
    there = {token["content"] for token in described.get("added_tokens") or []}
    is_extended = False
    for token in tokens:
        token_id = tokenizer.token_to_id(token.content)
        has_row = (tokenizer.get_vocab_size() if token_id is None else token_id) < vocab_size
        if token.content not in there and has_row:
            tokenizer.add_tokens([token])
            is_extended = True
    return is_extended


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
