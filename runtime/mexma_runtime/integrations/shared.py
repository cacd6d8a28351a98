"""What the adapters share: how a library is imported, an encoder opened, and vectors become lists."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, Unpack

from mexma_runtime.call.options import require_several
from mexma_runtime.encoder import Encoder
from mexma_runtime.errors import InputError, MissingDependencyError, UsageError
from mexma_runtime.load_options import LoadOptions
from mexma_runtime.types import Vectors

MAX_INLINE_FLOATS = 1 << 16
"""So many become Python's in the event loop's own thread, which takes about a millisecond."""

EncoderOrFolder: TypeAlias = Encoder | str | os.PathLike[str]
"""An encoder, or the folder of a bundle to load one from."""


class FolderOptions(LoadOptions, total=False):
    """What `Encoder.load` takes for a folder."""

    verify: bool


@contextmanager
def importing(module: str, *, package: str, extra: str) -> Iterator[None]:
    """MissingDependencyError where `module` is absent; what else goes wrong in it is raised as it is."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise MissingDependencyError(package, needed_for="its adapter", extra=extra) from error


def open_encoder(encoder: EncoderOrFolder, options: FolderOptions) -> Encoder:
    """`encoder` itself, or loaded from its folder with `options`."""
    if isinstance(encoder, str | os.PathLike):
        return Encoder.load(encoder, **options)
    if not isinstance(encoder, Encoder):
        raise UsageError(f"encoder: expected an Encoder or the folder of a bundle, got {type(encoder).__name__}")
    if options:
        raise UsageError(f"{', '.join(options)}: options are for a folder, and an Encoder was loaded with its own")
    return encoder


class DocumentEmbedder:
    """What BERTopic and KeyBERT call of an embedder; each wants it under a base class of its own."""

    embedding_model: Encoder
    """Theirs sets it."""

    def __init__(self, encoder: EncoderOrFolder, **options: Unpack[FolderOptions]) -> None:
        """`encoder`: one, or a bundle's folder with the options of `Encoder.load`."""
        super().__init__(embedding_model=open_encoder(encoder, options))  # type: ignore[call-arg]  # theirs

    def embed(self, documents: Iterable[str], verbose: bool = False) -> Vectors:
        """float32 `(n, dim)`, with the checkpoint's prompt for documents; `verbose` draws a bar on a terminal."""
        vectors: Vectors = self.embedding_model.encode_document(require_several(documents), show_progress_bar=verbose)
        return vectors


def require_one(text: str) -> str:
    """`text`; InputError where it is none."""
    if not isinstance(text, str):
        raise InputError(f"expected a str, got {type(text).__name__}")
    return text


def encode_to_lists(encode: Callable[..., Any], texts: str | Sequence[str], **options: Any) -> list[Any]:
    """The vectors of `encode(texts)` as Python's floats: of one str a list, of several a list of lists."""
    vectors: list[Any] = encode(texts, **options).tolist()
    return vectors


async def encode_to_lists_async(encoder: Encoder, texts: str | Sequence[str], prompt_name: str) -> list[Any]:
    """The same in an event loop. A task that is cancelled ends its call."""
    vectors = await encoder.aencode(texts, prompt_name)
    if vectors.size <= MAX_INLINE_FLOATS:
        return list(vectors.tolist())
    return list(await asyncio.to_thread(vectors.tolist))
