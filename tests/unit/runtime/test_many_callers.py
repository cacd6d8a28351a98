"""Many threads, and many coroutines, on one encoder: each gets what it would get alone."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mexma_runtime import (
    EncodeCancelledError,
    Encoder,
    EncoderBusyError,
    EncoderClosedError,
    EncodeTimeoutError,
    InputError,
    MexmaError,
    TextTooLongError,
    TruncationWarning,
    UsageError,
)
from mexma_runtime.types import Vectors

WORDS = "the cat a dog zebra and abc def x".split()
ENGINES = [("onnxruntime", "fused"), ("onnxruntime", "portable"), ("openvino", "portable")]
LONG = "abcdefghijklmnopqrstuvwxyz"


def drawn(n: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 2))) for _ in range(n)]


def options_of(seed: int) -> dict[str, Any]:
    """Some of what calls may differ in."""
    choices: list[dict[str, Any]] = [
        {},
        {"normalize_embeddings": True},
        {"prompt_name": "query"},
        {"prompt": "a "},
        {"batch_size": 3},
        {"truncate_dim": 4, "normalize_embeddings": True},
        {"precision": "ubinary"},
        {"as_pooled": True, "timeout": 60},
    ]
    return choices[seed % len(choices)]


@pytest.fixture(params=ENGINES, ids="-".join)
def shared(request: pytest.FixtureRequest, bundle_folder: Path) -> Encoder:
    backend, dialect = request.param
    return Encoder.load(bundle_folder, backend=backend, dialect=dialect, n_threads=1, max_waiting=1000)


def is_close(found: Vectors, expected: Vectors) -> bool:
    return found.dtype == expected.dtype and np.allclose(found, expected, atol=1e-6)


def test_threads_get_what_they_would_get_alone(shared: Encoder) -> None:
    calls = [(drawn(n, seed), options_of(seed)) for seed, n in enumerate([1, 1, 2, 1, 5, 70, 1, 300, 1, 1] * 16)]
    expected = [shared.encode(texts, **options) for texts, options in calls]

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda call: shared.encode(call[0], **call[1]), calls))

    assert all(map(is_close, found, expected))


def test_coroutines_get_what_they_would_get_alone(shared: Encoder) -> None:
    calls = [(drawn(n, seed), options_of(seed)) for seed, n in enumerate([1, 1, 2, 1, 5, 70, 1, 9000, 1, 1] * 4)]
    expected = [shared.encode(texts, **options) for texts, options in calls]

    async def all_at_once() -> Any:
        return await asyncio.gather(*(shared.aencode(texts, **options) for texts, options in calls))

    assert all(map(is_close, asyncio.run(all_at_once()), expected))
    assert is_close(asyncio.run(shared.aencode("the cat")), shared.encode("the cat"))
    assert asyncio.run(shared.aencode([])).shape == (0, 8)


def test_threads_coroutines_and_generators_share_it(shared: Encoder) -> None:
    texts = drawn(500, 0)
    expected = shared.encode(texts)

    async def some() -> Vectors:
        return np.array(await asyncio.gather(*map(shared.aencode, texts)))

    with ThreadPoolExecutor(4) as pool:
        ways: list[Callable[[], Any]] = [
            lambda: asyncio.run(some()),
            lambda: np.array(list(shared.encode_iter(texts, window=64))),
            lambda: shared.encode_ids(shared.tokenize(texts).ragged),
            lambda: np.array([shared.encode(text) for text in texts]),
        ]
        for found in [pool.submit(way) for way in ways]:
            assert is_close(found.result(), expected)


def test_waiting_texts_become_one_batch(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.load(bundle_folder, n_threads=1)
    n_rows, go, start = list[int](), threading.Event(), encoder._backend.start

    def counted(batch: Any, out: Any, **options: Any) -> Any:
        n_rows.append(len(batch))
        go.wait(20)
        return start(batch, out, **options)

    monkeypatch.setattr(encoder._backend, "start", counted)
    with ThreadPoolExecutor(20) as pool:
        calls = [pool.submit(encoder.encode, ["the cat"])]
        while not n_rows:
            time.sleep(0.001)
        calls += [pool.submit(encoder.encode, ["the cat"]) for _ in range(19)]
        while encoder._scheduler.n_waiting < 19:
            time.sleep(0.001)
        go.set()
        vectors = [call.result()[0] for call in calls]

    assert n_rows == [1, 19]
    np.testing.assert_allclose(vectors, vectors[:1] * 20, atol=1e-6)


def in_loop(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


@pytest.fixture
def held(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """An encoder whose batches take a fifth of a second."""
    encoder = Encoder.load(bundle_folder, n_threads=1, max_waiting=3)
    start = encoder._backend.start

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.2)
        return start(*arguments, **options)

    monkeypatch.setattr(encoder._backend, "start", slow)
    return encoder


async def outcome(awaitable: Awaitable[Any]) -> type[BaseException] | None:
    try:
        await awaitable
    except (MexmaError, asyncio.CancelledError) as error:
        return type(error)
    return None


def test_a_cancelled_task_leaves_the_queue(held: Encoder) -> None:
    async def work() -> None:
        tasks = [asyncio.ensure_future(outcome(held.aencode("the cat"))) for _ in range(3)]
        await asyncio.sleep(0.05)
        tasks[1].cancel()
        assert await asyncio.gather(*tasks) == [None, asyncio.CancelledError, None]
        assert held._scheduler.n_waiting == 0
        assert (await held.aencode("a")).shape == (8,)

    in_loop(work)


def test_a_coroutine_is_refused_as_a_thread_is(held: Encoder) -> None:
    async def work() -> None:
        tasks = [asyncio.ensure_future(outcome(held.aencode("the cat"))) for _ in range(4)]
        await asyncio.sleep(0.05)
        assert await outcome(held.aencode("the cat")) is EncoderBusyError
        assert await asyncio.gather(*tasks) == [None] * 4
        tasks = [asyncio.ensure_future(outcome(held.aencode("the cat", timeout=t))) for t in (60, 0.05, 60)]
        assert await asyncio.gather(*tasks) == [None, EncodeTimeoutError, None]
        for wrong, error in (({"timeout": "1"}, UsageError), ({"truncate_dim": 0}, UsageError)):
            assert await outcome(held.aencode("a", **wrong)) is error
        assert await outcome(held.aencode(["a", None])) is InputError  # type: ignore[list-item]
        assert await outcome(held.aencode(["a"] * 5000 + [LONG], truncate=False)) is TextTooLongError
        assert await outcome(held.aencode("a", truncate_dim=4, out=np.empty((1, 8), np.float32))) is UsageError
        running = asyncio.ensure_future(outcome(held.aencode("the cat")))
        await asyncio.sleep(0.05)
        waiting = [asyncio.ensure_future(outcome(held.aencode("the cat"))) for _ in range(2)]
        await asyncio.sleep(0.05)
        held.close()
        assert await asyncio.gather(running, *waiting) == [None, EncoderClosedError, EncoderClosedError]
        assert await outcome(held.aencode("a")) is EncoderClosedError

    in_loop(work)


def test_a_coroutine_writes_where_it_is_told_and_warns_its_caller(bundle_folder: Path) -> None:
    encoder, out = Encoder.load(bundle_folder, n_threads=1), np.zeros((2, 8), np.float32)

    async def work() -> None:
        assert await encoder.aencode(["a", "the cat"], out=out) is out
        np.testing.assert_array_equal(out, encoder.encode(["a", "the cat"]))
        with pytest.warns(TruncationWarning, match="1 of 2 texts") as caught:
            await encoder.aencode(["a", LONG])
        assert caught[0].filename == __file__
        await encoder.aencode(["a", LONG], truncate="quietly")

    in_loop(work)


def test_a_loop_that_is_gone_disturbs_nobody(held: Encoder) -> None:
    loop = asyncio.new_event_loop()
    task = loop.create_task(held.aencode("the cat"))
    loop.run_until_complete(asyncio.sleep(0.05))
    task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()

    assert held.encode("a").shape == (8,)


def test_random_calls_cancels_and_timeouts_are_all_answered(bundle_folder: Path) -> None:
    """For a moment; `pytest -m soak` does it for ten minutes."""
    encoder, until = Encoder.load(bundle_folder, n_threads=1), time.monotonic() + 2
    answers: list[type[BaseException] | None] = []

    def caller(seed: int) -> None:
        draw = random.Random(seed)
        while time.monotonic() < until:
            texts, cancel = drawn(draw.choice([1, 1, 1, 3, 40, 500]), seed), threading.Event()
            timeout = draw.choice([None, None, 0.001, 0.01])
            if draw.random() < 0.2:
                threading.Timer(draw.random() * 0.01, cancel.set).start()
            try:
                assert is_close(encoder.encode(texts, timeout=timeout, cancel=cancel), expected[seed][: len(texts)])
            except (EncodeCancelledError, EncodeTimeoutError) as error:
                answers.append(type(error))
            else:
                answers.append(None)

    expected = [encoder.encode(drawn(500, seed)) for seed in range(32)]
    with ThreadPoolExecutor(32) as pool:
        for ended in [pool.submit(caller, seed) for seed in range(32)]:
            ended.result(60)
    assert {None, EncodeCancelledError, EncodeTimeoutError} == set(answers)
    assert encoder._scheduler.n_waiting == 0
    assert encoder.encode("a").shape == (8,)
