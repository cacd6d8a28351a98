"""KeyBERT: an encoder as its embedder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Unpack

from mexma_runtime.integrations.shared import EncoderOrFolder, FolderOptions, importing, open_encoder
from mexma_runtime.types import Vectors

with importing("keybert", package="keybert", extra="keybert"):
    from keybert.backend import BaseEmbedder


class MexmaEmbedder(BaseEmbedder):
    """Embeds documents and words alike: KeyBERT compares them with one another."""

    def __init__(self, encoder: EncoderOrFolder, **options: Unpack[FolderOptions]) -> None:
        """`encoder`: one, or a bundle's folder with the options of `Encoder.load`."""
        super().__init__(embedding_model=open_encoder(encoder, options))

    def embed(self, documents: Iterable[str], verbose: bool = False) -> Vectors:
        """float32 `(n, dim)`, with the checkpoint's prompt for documents; `verbose` draws a bar on a terminal."""
        vectors: Vectors = self.embedding_model.encode_document(documents, show_progress_bar=verbose)
        return vectors
