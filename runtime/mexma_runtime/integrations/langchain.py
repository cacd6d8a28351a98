"""LangChain: an encoder as its embeddings."""

from __future__ import annotations

from typing import Unpack

from mexma_runtime.call.options import require_several
from mexma_runtime.integrations.shared import (
    EncoderOrFolder,
    FolderOptions,
    encode_to_lists,
    encode_to_lists_async,
    importing,
    open_encoder,
    require_one,
)

with importing("langchain_core", package="langchain-core", extra="langchain"):
    from langchain_core.embeddings import Embeddings


class MexmaEmbeddings(Embeddings):
    """Embeds for LangChain's vector stores. A task that is cancelled ends its call."""

    def __init__(self, encoder: EncoderOrFolder, **options: Unpack[FolderOptions]) -> None:
        """`encoder`: one, or a bundle's folder with the options of `Encoder.load`."""
        self._encoder = open_encoder(encoder, options)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each text, with the checkpoint's prompt for documents."""
        return encode_to_lists(self._encoder.encode_document, require_several(texts))

    def embed_query(self, text: str) -> list[float]:
        """The vector of one text, with the checkpoint's prompt for queries."""
        return encode_to_lists(self._encoder.encode_query, require_one(text))

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents` in an event loop."""
        return await encode_to_lists_async(self._encoder, require_several(texts), "document")

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query` in an event loop."""
        return await encode_to_lists_async(self._encoder, require_one(text), "query")
