from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from mexma_benchmarks.adapters.http_server import BATCH_SIZE, ServerError, open_model
from mexma_benchmarks.adapters.protocol import NotOfferedError, Task

TEXTS = [f"text {i} " + "of some length " * (i % 7) for i in range(2 * BATCH_SIZE + 3)]


def vector(text: str) -> list[float]:
    """One that tells texts apart."""
    return [len(text), sum(map(ord, text)), *map(ord, text[5:7])]


@dataclass
class Service:
    """A server of both interfaces, and what it was asked."""

    port: int = 0
    status: int = 200
    answer: Callable[[list[list[float]]], Any] | None = None
    """Of the right vectors, in place of the right answer."""
    closes: bool = False
    """Ends each connection after its answer, without saying so."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    connections: set[int] = field(default_factory=set)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@pytest.fixture
def service() -> Iterator[Service]:
    state = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            state.connections.add(self.client_address[1])
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.bodies.append(body)
            vectors = [vector(text) for text in body["input" if self.path == "/v1/embeddings" else "inputs"]]
            answer: Any = vectors
            if state.answer:
                answer = state.answer(vectors)
            elif self.path == "/v1/embeddings":
                items = [{"index": i, "embedding": row} for i, row in enumerate(vectors)]
                answer = {"data": items[::-1]}
            content = json.dumps(answer).encode()
            self.send_response(state.status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = state.closes

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def task(url: str, **options: str) -> Task:
    return Task(
        checkpoint="",
        tokenizer="",
        pooling="cls",
        is_normalized=False,
        max_tokens=512,
        n_threads=1,
        device="cpu",
        folder="",
        first_text="",
        options={"url": url, **options},
    )


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
def test_vectors_come_in_the_order_of_the_texts_over_one_connection(service: Service, path: str) -> None:
    model = open_model(task(service.url(path)))

    vectors = model.encode(TEXTS)

    assert vectors.dtype == np.float32
    assert vectors.tolist() == [vector(text) for text in TEXTS]
    assert [len(body.get("input") or body["inputs"]) for body in service.bodies] == [BATCH_SIZE, BATCH_SIZE, 3]
    assert len(service.connections) == 1


def test_a_server_is_told_what_the_task_says(service: Service) -> None:
    open_model(task(service.url("/v1/embeddings"), model="mexma")).encode(["a"])
    open_model(task(service.url("/embed"))).encode(["a"])

    assert service.bodies == [
        {"input": ["a"], "model": "mexma", "encoding_format": "float"},
        {"inputs": ["a"], "normalize": False, "truncate": True},
    ]


def test_threads_call_side_by_side(service: Service) -> None:
    model = open_model(task(service.url("/embed")))

    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda text: model.encode([text]), TEXTS))

    assert np.concatenate(parts).tolist() == [vector(text) for text in TEXTS]
    assert model.is_remote
    assert model.n_workers > 1


def test_a_connection_that_the_server_closed_is_opened_again(service: Service) -> None:
    service.closes = True
    model = open_model(task(service.url("/embed")))

    vectors = model.encode(TEXTS)

    assert len(vectors) == len(TEXTS)
    assert len(service.connections) == 3


@pytest.mark.parametrize(
    ("path", "answer", "reason"),
    [
        ("/embed", lambda rows: rows[:-1], r"each of 3 texts, got an array of shape \(2, 4\)"),
        ("/embed", lambda rows: rows[0], r"each of 3 texts, got an array of shape \(4,\)"),
        ("/embed", lambda rows: [[row] for row in rows], r"shape \(3, 1, 4\)"),
        ("/embed", lambda rows: [rows[0], rows[1][:-1], rows[2]], "expected vectors, got .*inhomogeneous"),
        ("/embed", lambda _: {"error": "overloaded"}, "expected vectors, got .*overloaded"),
        ("/v1/embeddings", lambda rows: rows, "expected vectors, got .*TypeError"),
        ("/v1/embeddings", lambda _: {"message": "no model"}, "expected vectors, got .*no model.*KeyError"),
        ("/v1/embeddings", lambda _: {"data": []}, "each of 3 texts"),
    ],
)
def test_an_answer_of_another_shape_is_refused(
    service: Service, path: str, answer: Callable[[list[list[float]]], Any], reason: str
) -> None:
    service.answer = answer

    with pytest.raises(ServerError, match=reason):
        open_model(task(service.url(path))).encode(TEXTS[:3])


def test_vectors_of_several_dimensions_are_refused(service: Service) -> None:
    service.answer = lambda rows: [row[: 2 + (len(rows) == BATCH_SIZE)] for row in rows]

    with pytest.raises(ServerError, match=r"vectors of \[2, 3\] dimensions"):
        open_model(task(service.url("/embed"))).encode(TEXTS[: BATCH_SIZE + 1])


def test_a_refusal_is_shown(service: Service) -> None:
    service.status, service.answer = 429, lambda _: {"error": "queue is full"}

    with pytest.raises(ServerError, match=r"status 429 Too Many Requests: .*queue is full"):
        open_model(task(service.url("/embed"))).encode(["a"])


def test_a_server_that_is_not_there() -> None:
    url = "http://127.0.0.1:1/embed"  # nobody listens on port 1

    with pytest.raises(ServerError, match=r"no answer: .*refused.*is the server running"):
        open_model(task(url)).encode(["a"])


def test_a_url_of_neither_interface() -> None:
    with pytest.raises(ServerError, match=r"http://host/: expected a path that ends in /embeddings"):
        open_model(task("http://host/"))


def test_token_ids_are_not_offered(service: Service) -> None:
    with pytest.raises(NotOfferedError):
        open_model(task(service.url("/embed"))).encode_ids([[0, 2]])
