"""KeyBERT: an encoder as its embedder."""

from __future__ import annotations

from mexma_runtime.integrations.shared import DocumentEmbedder, importing

with importing("keybert", package="keybert", extra="keybert"):
    from keybert.backend import BaseEmbedder


class MexmaEmbedder(DocumentEmbedder, BaseEmbedder):
    """Embeds documents and words alike: KeyBERT compares them with one another."""
