"""LlamaIndex: an encoder as its embedding model."""

from __future__ import annotations

from typing import Any

from mexma_runtime.encoder import Encoder
from mexma_runtime.integrations.shared import (
    EncoderOrFolder,
    encode_to_lists,
    encode_to_lists_async,
    importing,
    open_encoder,
    require_one,
)

with importing("llama_index.core", package="llama-index-core", extra="llama-index"):
    from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
    from llama_index.core.bridge.pydantic import Field, PrivateAttr


class MexmaEmbedding(BaseEmbedding):
    """Embeds for LlamaIndex's indices. A task that is cancelled ends its call."""

    # The encoder makes its own batches of a call, best where it has texts of like lengths to choose from.
    embed_batch_size: int = Field(default=256, gt=0, le=2048, description="Texts that the encoder is given at once.")
    # LlamaIndex's caches know a model by its fields: engines of the same name may differ in their vectors.
    space: str = Field(default="", description="Fingerprint of the vector space.")
    _encoder: Encoder = PrivateAttr()

    def __init__(self, encoder: EncoderOrFolder, **options: Any) -> None:
        """`encoder`: one, or a bundle's folder with the options of `Encoder.load`. LlamaIndex's own go with both."""
        own = {name: options.pop(name) for name in type(self).model_fields if name in options}
        opened = open_encoder(encoder, options)  # type: ignore[arg-type]  # it refuses what it does not know
        super().__init__(**{"model_name": opened.info.model_id, **own, "space": opened.info.space})
        self._encoder = opened

    @classmethod
    def class_name(cls) -> str:
        """What LlamaIndex calls it in files and events."""
        return "MexmaEmbedding"

    def _get_query_embedding(self, query: str) -> Embedding:
        return encode_to_lists(self._encoder.encode_query, require_one(query))

    def _get_text_embedding(self, text: str) -> Embedding:
        return encode_to_lists(self._encoder.encode_document, require_one(text))

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return encode_to_lists(self._encoder.encode_document, texts)

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await encode_to_lists_async(self._encoder, require_one(query), "query")

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return await encode_to_lists_async(self._encoder, require_one(text), "document")

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await encode_to_lists_async(self._encoder, texts, "document")
