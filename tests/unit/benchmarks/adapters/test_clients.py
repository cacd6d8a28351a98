from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.unit.benchmarks.adapters.test_mexma import task_of

from mexma_benchmarks.adapters.clients import Repeated, serve_coroutines, serve_threads
from mexma_benchmarks.adapters.mexma import open_model
from mexma_benchmarks.adapters.protocol import _answer


@pytest.mark.parametrize("n_clients", [1, 5])
def test_threads_ask_again_and_again(n_clients: int) -> None:
    served, side_by_side, most = list[int](), 0, 0

    def serve(i: int) -> None:
        nonlocal side_by_side, most
        side_by_side += 1
        most = max(most, side_by_side)
        served.append(i)
        time.sleep(0.01)
        side_by_side -= 1

    latencies_s, seconds = serve_threads(serve, n_clients=n_clients, seconds=0.2)

    assert sorted(served) == list(range(len(latencies_s)))
    assert len(served) > n_clients
    assert min(latencies_s) >= 0.01
    assert seconds >= 0.2
    assert (most > 1) == (n_clients > 1)


def test_coroutines_ask_again_and_again() -> None:
    served = list[int]()

    async def serve(i: int) -> None:
        served.append(i)
        await asyncio.sleep(0.01)

    latencies_s, seconds = serve_coroutines(serve, n_clients=5, seconds=0.2)

    assert sorted(served) == list(range(len(latencies_s)))
    assert len(served) > 5
    assert seconds >= 0.2


def test_what_a_client_raises_reaches_the_caller() -> None:
    def fail(i: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        serve_threads(fail, n_clients=3, seconds=0.1)
    with pytest.raises(ZeroDivisionError), Repeated(lambda: fail(0)):
        pass


def test_the_same_is_done_over_and_over_meanwhile() -> None:
    n_done, enough = 0, threading.Event()

    def work() -> None:
        nonlocal n_done
        n_done += 1
        if n_done == 5:
            enough.set()

    with Repeated(work):
        assert enough.wait(20)
    n_at_end = n_done
    time.sleep(0.02)
    assert n_done == n_at_end


def test_an_encoder_serves_them(tiny_bundle: Path) -> None:
    model = open_model(task_of(tiny_bundle))
    texts = ["the ferry leaves at noon", "a dog", "b"]
    how = {"do": "serve_clients", "texts": texts, "n_clients": 3, "texts_a_call": 2, "seconds": 0.1}
    for clients in ("threads", "coroutines"):
        answer = _answer(model, {**how, "clients": clients})
        assert len(answer["latencies_ms"]) >= 3, answer
    beside = {"do": "serve_beside", "texts": texts, "arrivals_s": [0.01, 0.02], "n_alone": 4, "n_tokens": 6, "id": 5}
    answer = _answer(model, beside)
    assert {name: len(ms) for name, ms in answer.items()} == {"alone_ms": 4, "batch_ms": 4, "latencies_ms": 2}


def test_what_has_no_interface_for_asyncio_says_so(tiny_bundle: Path) -> None:
    model = open_model(task_of(tiny_bundle))
    model._encoder = SimpleNamespace(warmup=lambda: None)  # type: ignore[attr-defined]
    request = {"do": "serve_clients", "texts": ["a"], "n_clients": 1, "texts_a_call": 1, "seconds": 0.1}
    assert "asyncio" in _answer(model, {**request, "clients": "coroutines"})["not_offered"]
