"""BERTopic: an encoder as its embedder."""

from __future__ import annotations

from mexma_runtime.integrations.shared import DocumentEmbedder, importing

with importing("bertopic", package="bertopic", extra="bertopic"):
    from bertopic.backend import BaseEmbedder


class MexmaEmbedder(DocumentEmbedder, BaseEmbedder):
    """Embeds documents and words alike: BERTopic compares them with one another."""
