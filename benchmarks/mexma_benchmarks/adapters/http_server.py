"""A server that runs already: OpenAI's /v1/embeddings or TEI's /embed, by the path of its URL.

`options`: `url`; `model`, its name there, for OpenAI's. What the server runs, and how it pools, is its own affair: it
should be the checkpoint that the others are given.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from mexma_benchmarks.adapters.protocol import Model, Task, Vectors, run_adapter

BATCH_SIZE = 32
"""Texts a request: what both servers allow by default."""
TIMEOUT_S = 300.0
N_SHOWN = 200
"""Characters of an answer that an error shows."""


class ServerError(Exception):
    """The server cannot be reached, refused, or answered something else than one vector a text."""


def open_model(task: Task) -> Model:
    """Choose the interface; nothing is sent yet."""
    url, model = str(task.options["url"]), task.options.get("model")
    path = urlsplit(url).path
    if path.endswith("/embeddings"):
        return OpenAI(url, {"encoding_format": "float"} | ({"model": model} if model else {}))
    if path.endswith("/embed"):
        return TEI(url, {"normalize": task.is_normalized, "truncate": True})
    raise ServerError(f"{url}: expected a path that ends in /embeddings (OpenAI's interface) or /embed (TEI's)")


class Server(Model):
    """A server; each thread that calls keeps a connection of its own open."""

    n_workers = 32
    is_remote = True
    batching = f"requests of up to {BATCH_SIZE}, in order of arrival"

    def __init__(self, url: str, settings: dict[str, Any]) -> None:
        self._url, self._settings = url, settings
        self._threads = threading.local()
        self.versions: dict[str, str] = {}
        self.provider = url

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Embed texts, one request after the other."""
        parts = [self._request(list(texts[start : start + BATCH_SIZE])) for start in range(0, len(texts), BATCH_SIZE)]
        if len(dims := {part.shape[1] for part in parts}) > 1:
            raise ServerError(f"{self._url}: vectors of {sorted(dims)} dimensions in answers to one call")
        return np.concatenate(parts)

    def body(self, texts: list[str]) -> dict[str, Any]:
        """What a request for `texts` says."""
        raise NotImplementedError

    def rows(self, answer: Any) -> Any:
        """The vectors of an answer, in the order of the request; KeyError, TypeError or ValueError if it has none."""
        raise NotImplementedError

    def _request(self, texts: list[str]) -> Vectors:
        content = self._post(json.dumps(self.body(texts)).encode())
        try:
            vectors = np.asarray(self.rows(json.loads(content)), dtype=np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(f"{self._url}: expected vectors, got {_shown(content)} ({error!r})") from None
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise ServerError(
                f"{self._url}: expected a vector for each of {len(texts)} texts, got an array of shape {vectors.shape}"
            )
        return vectors

    def _post(self, body: bytes) -> bytes:
        """The content of the answer. A connection that the server closed since the last request is opened once more."""
        headers = {"Content-Type": "application/json"}
        url = urlsplit(self._url)
        path = url.path + (f"?{url.query}" if url.query else "")
        while True:
            known: HTTPConnection | None = getattr(self._threads, "connection", None)
            connection = known or self._connect(url.scheme, url.netloc)
            try:
                connection.request("POST", path, body, headers)
                response = connection.getresponse()
                content: bytes = response.read()
            except (OSError, HTTPException) as error:
                connection.close()
                self._threads.connection = None
                if known is None or isinstance(error, TimeoutError):
                    raise ServerError(f"{self._url}: no answer: {error!r}: is the server running?") from None
                continue
            if response.status != 200:
                raise ServerError(f"{self._url}: status {response.status} {response.reason}: {_shown(content)}")
            return content

    def _connect(self, scheme: str, host: str) -> HTTPConnection:
        kind = HTTPSConnection if scheme == "https" else HTTPConnection
        self._threads.connection = kind(host, timeout=TIMEOUT_S)
        connection: HTTPConnection = self._threads.connection
        return connection


class OpenAI(Server):
    """`{"model": ..., "input": [...]}` -> `{"data": [{"index": 0, "embedding": [...]}, ...]}`."""

    def body(self, texts: list[str]) -> dict[str, Any]:
        """A request."""
        return self._settings | {"input": texts}

    def rows(self, answer: Any) -> Any:
        """Embeddings by their index, since their order is not promised."""
        return [item["embedding"] for item in sorted(answer["data"], key=lambda item: item["index"])]


class TEI(Server):
    """`{"inputs": [...]}` -> `[[...], ...]`."""

    def body(self, texts: list[str]) -> dict[str, Any]:
        """A request."""
        return self._settings | {"inputs": texts}

    def rows(self, answer: Any) -> Any:
        """The rows of the answer, which is the list itself."""
        return answer


def _shown(content: bytes) -> str:
    text = content.decode(errors="replace")
    return repr(text if len(text) <= N_SHOWN else text[:N_SHOWN] + "...")


if __name__ == "__main__":
    run_adapter(open_model)
