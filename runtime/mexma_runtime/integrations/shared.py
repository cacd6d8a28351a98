"""What the adapters share: how a library is imported, an encoder opened, and a call made in a thread."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from mexma_runtime.encoder import Encoder, LoadOptions
from mexma_runtime.errors import MissingDependencyError, UsageError

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
    if not isinstance(encoder, Encoder):
        return Encoder.load(encoder, **options)
    if options:
        raise UsageError(f"{', '.join(options)}: options are for a folder, and an Encoder was loaded with its own")
    return encoder


def encode_to_lists(encode: Callable[..., Any], texts: str | Sequence[str], **options: Any) -> list[Any]:
    """The vectors of `encode(texts)` as Python's floats: of one str a list, of several a list of lists."""
    vectors: list[Any] = encode(texts, **options).tolist()
    return vectors


async def encode_in_thread(encode: Callable[..., Any], texts: str | Sequence[str]) -> list[Any]:
    """The same in a thread. A task that is cancelled cancels the call, which ends after its running batch."""
    cancel = threading.Event()
    try:
        return await asyncio.to_thread(encode_to_lists, encode, texts, cancel=cancel)
    finally:
        cancel.set()
