"""What a call to encode asks for, checked and made definite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral

import numpy as np

from mexma_runtime.bundle.manifest import Manifest
from mexma_runtime.errors import InputError, UsageError
from mexma_runtime.text.tokenizer import refuse_surrogates
from mexma_runtime.types import is_unicode

PROMPTS = {"query": "", "document": ""}
"""Names that every model knows, as in sentence-transformers: empty unless the checkpoint says more."""


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """What the ways to encode have in common."""

    prompt: str
    """Put before each text."""
    truncate: bool
    normalize: bool
    batch_size: int | None
    """Most sentences in a batch; None: as many as the backend likes."""


def resolve_options(
    manifest: Manifest,
    *,
    prompt_name: str | None = None,
    prompt: str | None = None,
    truncate: bool = True,
    normalize: bool | None = None,
    batch_size: int | None = None,
) -> EncodeOptions:
    """Fill in the checkpoint's own ways; prompts are chosen as sentence-transformers does."""
    if batch_size is not None and (
        not isinstance(batch_size, Integral) or isinstance(batch_size, bool) or batch_size < 1
    ):
        raise UsageError(f"batch_size: expected 1 or more, got {batch_size!r}")
    choices: tuple[tuple[str, object], ...] = (("truncate", truncate), ("normalize_embeddings", normalize))
    for name, choice in choices:
        if not isinstance(choice, bool | np.bool_) and (choice is not None or name == "truncate"):
            raise UsageError(f"{name}: expected True or False, got {choice!r}")
    for name, words in (("prompt_name", prompt_name), ("prompt", prompt)):
        if words is not None and not isinstance(words, str):
            raise UsageError(f"{name}: expected a str, got {type(words).__name__}")
        if words is not None and not is_unicode(words):
            raise UsageError(f"{name}: expected valid Unicode, got {words!a}")
    prompts = PROMPTS | manifest.text.prompts
    if prompt is None and prompt_name is not None:
        if prompt_name not in prompts:
            raise UsageError(f"prompt_name: expected one of {sorted(prompts)}, got {prompt_name!r}")
        prompt = prompts[prompt_name]
    elif prompt is None and manifest.text.default_prompt_name is not None:
        prompt = prompts.get(manifest.text.default_prompt_name)
    own_way = manifest.is_normalized if normalize is None else normalize
    return EncodeOptions(prompt=prompt or "", truncate=truncate, normalize=own_way, batch_size=batch_size)


def listed(sentences: Iterable[str]) -> list[str]:
    """The texts as a list; InputError where one is no text, found before hours are spent on those in front of it."""
    if isinstance(sentences, (str, bytes, Mapping)) or not isinstance(sentences, Iterable):
        raise InputError(f"expected a sequence of str, got {type(sentences).__name__}")
    return require_texts(list(sentences))


def require_texts(texts: list[str], first_index: int = 0) -> list[str]:
    """`texts`; InputError where one is not a str, or not valid Unicode, counted from `first_index`."""
    for index, text in enumerate(texts, first_index):
        if not isinstance(text, str):
            raise InputError(f"expected a str, got {type(text).__name__}", index=index)
        if not text.isascii():
            refuse_surrogates([text], index)
    return texts
