"""What `make test-integrations` hands to the tests of each library: a bundle of MiniLM, and vectors made elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from mexma_runtime import Encoder
from mexma_runtime.types import Vectors

TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Texts, and their vectors of the development environment `(n, dim)`: of no prompt, of queries, of documents."""

    texts: list[str]
    plain: Vectors
    query: Vectors
    document: Vectors


@pytest.fixture(scope="session")
def bundle() -> str:
    return os.environ["MEXMA_BUNDLE"]


@pytest.fixture(scope="session")
def expected() -> Expected:
    with np.load(os.environ["MEXMA_VECTORS"]) as file:
        return Expected(
            texts=file["texts"].tolist(), plain=file["plain"], query=file["query"], document=file["document"]
        )


@pytest.fixture(scope="session")
def same() -> Callable[[Any, Any], None]:
    """Compares vectors; the message has the worst of them."""

    def compare(vectors: Any, others: Any) -> None:
        np.testing.assert_allclose(np.asarray(vectors), np.asarray(others), rtol=0, atol=TOLERANCE)

    return compare


@pytest.fixture(scope="session")
def encoder(bundle: str, expected: Expected, same: Callable[[Any, Any], None]) -> Encoder:
    """The bundle's Encoder in this environment, whose vectors are those of the development environment."""
    encoder = Encoder.load(bundle)
    same(encoder.encode(expected.texts), expected.plain)
    same(encoder.encode_query(expected.texts), expected.query)
    same(encoder.encode_document(expected.texts), expected.document)
    return encoder
