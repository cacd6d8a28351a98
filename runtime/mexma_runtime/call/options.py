"""What a call to encode asks for, checked and made definite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mexma_runtime.bundle.manifest import Manifest
from mexma_runtime.errors import InputError, UsageError
from mexma_runtime.quantized_vectors import VectorPrecision, quantize_vectors
from mexma_runtime.text.tokenizer import refuse_surrogates
from mexma_runtime.types import Vectors, is_unicode
from mexma_runtime.vectors import normalize_rows

Texts = TypeVar("Texts")


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """What the ways to encode have in common."""

    prompt: str
    """Put before each text."""
    truncate: bool
    max_tokens: int
    """Of a text, special tokens included."""
    normalize: bool
    batch_size: int | None
    """Most sentences in a batch; None: as many as the backend likes."""


def resolve_options(
    manifest: Manifest,
    *,
    prompt_name: str | None = None,
    prompt: str | None = None,
    truncate: bool = True,
    max_tokens: int | None = None,
    normalize: bool | None = None,
    as_pooled: bool = False,
    batch_size: int | None = None,
) -> EncodeOptions:
    """Fill in the checkpoint's own ways; prompts and length are chosen as sentence-transformers does."""
    if batch_size is not None and not _is_count(batch_size):
        raise UsageError(f"batch_size: expected 1 or more, got {batch_size!r}")
    require_flags(truncate=truncate, as_pooled=as_pooled)
    if normalize is not None:
        require_flags(normalize_embeddings=normalize)
    for name, words in (("prompt_name", prompt_name), ("prompt", prompt)):
        if words is not None and not isinstance(words, str):
            raise UsageError(f"{name}: expected a str, got {type(words).__name__}")
        if words is not None and not is_unicode(words):
            raise UsageError(f"{name}: expected valid Unicode, got {words!a}")
    prompts = manifest.text.known_prompts
    if prompt_name is not None and prompt_name not in prompts:
        raise UsageError(f"prompt_name: expected one of {sorted(prompts)}, got {prompt_name!r}")
    chosen = manifest.text.default_prompt_name if prompt_name is None else prompt_name
    if prompt is None and chosen is not None:
        prompt = prompts.get(chosen)
    if normalize and as_pooled:
        raise UsageError("normalize_embeddings=True and as_pooled=True contradict each other: leave one out")
    return EncodeOptions(
        prompt=prompt or "",
        truncate=truncate,
        max_tokens=max_tokens or manifest.text.max_tokens,
        normalize=not as_pooled and bool(normalize or manifest.is_normalized),
        batch_size=batch_size,
    )


@dataclass(frozen=True, kw_only=True)
class VectorOptions:
    """The form that vectors are given in, once they are computed."""

    truncate_dim: int | None
    """Numbers of a vector that are kept; None: all."""
    precision: VectorPrecision
    normalize: bool
    """Whether what is cut gets length 1 again."""

    @property
    def is_whole(self) -> bool:
        """Whether vectors are given as they are computed."""
        return self.truncate_dim is None and self.precision is VectorPrecision.FLOAT32

    def apply(self, vectors: Vectors) -> NDArray[Any]:
        """float32 `(n, dim)` or `(dim,)` in this form; InputError: int8 or uint8 of a single vector."""
        if self.truncate_dim is not None:
            vectors = np.array(vectors[..., : self.truncate_dim])
            if self.normalize:
                normalize_rows(np.atleast_2d(vectors))
        return quantize_vectors(vectors, self.precision)


def resolve_vector_options(*, truncate_dim: int | None, precision: str | None, normalize: bool | None) -> VectorOptions:
    """UsageError for what is none; no precision is float32, as in sentence-transformers."""
    if truncate_dim is not None and not _is_count(truncate_dim):
        raise UsageError(f"truncate_dim: expected 1 or more, got {truncate_dim!r}")
    if precision not in (None, *VectorPrecision):
        raise UsageError(
            f"precision: expected one of {', '.join(VectorPrecision)} (how vectors are given), got {precision!r}; an "
            "engine's own (fp32, fp16, int8) is chosen when it is loaded: Encoder.load(..., precision=...)"
        )
    return VectorOptions(
        truncate_dim=truncate_dim,
        precision=VectorPrecision(precision or VectorPrecision.FLOAT32),
        normalize=bool(normalize),
    )


def resolve_timeout(timeout: object) -> float | None:
    """Seconds; UsageError for what is no number of them."""
    if timeout is None:
        return None
    try:
        seconds = float(timeout) if isinstance(timeout, Real) else math.nan
    except OverflowError:
        seconds = math.nan
    if math.isnan(seconds):
        raise UsageError(f"timeout: expected seconds, got {timeout!r}")
    return seconds


def refuse_what_torch_does(
    own_device: str, *, output_value: str | None, device: object, pool: object, chunk_size: object
) -> None:
    """UsageError for arguments of sentence-transformers that mean nothing to an engine, unless they ask for nothing."""
    if output_value != "sentence_embedding":
        raise UsageError(f"output_value: expected 'sentence_embedding', all that an engine gives, got {output_value!r}")
    if device is not None and own_device.removesuffix(":0") != str(device).removesuffix(":0"):
        raise UsageError(f"device: this encoder is on {own_device}, got {device!r}: Encoder.load(..., device=...)")
    for name, value in (("pool", pool), ("chunk_size", chunk_size)):
        if value is not None:
            raise UsageError(
                f"{name}: expected None, got {value!r}: an encoder is one process; with several GPUs, "
                "Encoder.load(..., device=['cuda:0', 'cuda:1'])"
            )


def require_flags(**flags: object) -> None:
    """UsageError for a flag that is neither True nor False."""
    for name, flag in flags.items():
        if not isinstance(flag, bool | np.bool_):
            raise UsageError(f"{name}: expected True or False, got {flag!r}")


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def listed(sentences: Iterable[str]) -> list[str]:
    """The texts as a list; InputError where one is no text, found before hours are spent on those in front of it."""
    return require_texts(list(require_several(sentences)))


def require_several(texts: Texts, expected: str = "a sequence of str") -> Texts:
    """`texts`; InputError where they are not several things, whatever each of them is."""
    is_scalar = getattr(texts, "ndim", 1) == 0
    if isinstance(texts, (str, bytes, Mapping)) or not isinstance(texts, Iterable) or is_scalar:
        shape = " of shape ()" if is_scalar else ""
        raise InputError(f"expected {expected}, got {type(texts).__name__}{shape}")
    return texts


def require_texts(texts: list[str], first_index: int = 0) -> list[str]:
    """`texts`; InputError where one is not a str, or not valid Unicode, counted from `first_index`."""
    for index, text in enumerate(texts, first_index):
        if not isinstance(text, str):
            raise InputError(f"expected a str, got {type(text).__name__}", index=index)
        if not text.isascii():
            refuse_surrogates([text], index)
    return texts
