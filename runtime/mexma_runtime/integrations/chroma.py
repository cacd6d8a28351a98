"""Chroma: an encoder as an embedding function, which a collection keeps and opens again.

Chroma finds it by its name once this module is imported.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, Unpack

from mexma_runtime.call.options import require_several
from mexma_runtime.encoder import Encoder
from mexma_runtime.errors import BundleError, UsageError
from mexma_runtime.integrations.shared import EncoderOrFolder, FolderOptions, importing, open_encoder

with importing("chromadb", package="chromadb", extra="chroma"):
    from chromadb.api.types import Embeddable, EmbeddingFunction, Embeddings, Space
    from chromadb.utils.embedding_functions import register_embedding_function

MAX_REOPENED = 4
"""Encoders of reopened collections that stay loaded: Chroma builds the function anew for each of their calls."""

KEPT = ("bundle", "engine", "device", "space")
"""What a collection keeps."""


@register_embedding_function
class MexmaEmbeddingFunction(EmbeddingFunction[Embeddable]):
    """Embeds for Chroma's collections, which keep the bundle, the engine and the device, but no other options."""

    def __init__(self, encoder: EncoderOrFolder, **options: Unpack[FolderOptions]) -> None:
        """`encoder`: one, or a bundle's folder with the options of `Encoder.load`."""
        opened = open_encoder(encoder, options)
        info = opened.info
        folder = os.path.abspath(info.bundle)  # noqa: PTH100 # a link stays one
        self._config = dict(zip(KEPT, (folder, info.engine, info.device, info.space), strict=True))
        self._encoder: Callable[[], Encoder] = lambda: opened

    def __call__(self, input: Embeddable) -> Embeddings:  # noqa: A002 # Chroma's name for it
        """A float32 vector for each text, with the checkpoint's prompt for documents; of images InputError."""
        return list(self._encoder().encode_document(require_several(input)))  # type: ignore[arg-type]  # it refuses images itself

    def embed_query(self, input: Embeddable) -> Embeddings:  # noqa: A002
        """The same with the checkpoint's prompt for queries."""
        return list(self._encoder().encode_query(require_several(input)))  # type: ignore[arg-type]

    @staticmethod
    def name() -> str:
        """What collections know it by."""
        return "mexma_runtime"

    def default_space(self) -> Space:
        """Cosine: not every model gives vectors length 1."""
        return "cosine"

    def supported_spaces(self) -> list[Space]:
        """All of Chroma's."""
        return ["cosine", "l2", "ip"]

    def get_config(self) -> dict[str, Any]:
        """What a collection keeps; `space` is the fingerprint of the vector space."""
        return dict(self._config)

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> MexmaEmbeddingFunction:
        """The function that a collection was made with; UsageError where its settings are not whole. Its first text
        opens the bundle; BundleError where that has other vectors now.
        """
        if missing := [key for key in KEPT if key not in config]:
            raise UsageError(
                f"a collection's settings: expected {', '.join(KEPT)}, missing are {', '.join(missing)}: give "
                "get_collection an embedding_function"
            )
        # Chroma builds one whenever it reads a collection's settings, to look at its name say.
        function = MexmaEmbeddingFunction.__new__(MexmaEmbeddingFunction)
        function._config = dict(config)
        function._encoder = lambda: _reopened(**{key: config[key] for key in KEPT}, process=os.getpid())
        return function

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """UsageError where vectors of the collection and new ones could not be compared."""
        if old_config["space"] != new_config["space"]:
            raise UsageError(f"the collection has vectors of space {old_config['space']}, not {new_config['space']}")


@functools.lru_cache(MAX_REOPENED)
def _reopened(bundle: str, engine: str, device: str, space: str, process: int) -> Encoder:
    """`process`: an encoder does not survive a fork."""
    encoder = Encoder.load(bundle, engine=engine, device=device.split(",") if "," in device else device)
    if encoder.info.space != space:
        raise BundleError(
            bundle,
            f"the engine {engine} has vectors of space {encoder.info.space}, and the collection those of {space}: "
            "put the old bundle back, or embed the documents again",
        )
    return encoder
