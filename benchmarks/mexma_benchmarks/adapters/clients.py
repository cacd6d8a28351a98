"""Closed-loop load: clients that ask again as soon as they have their answer, and a caller that never stops."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count

from mexma_benchmarks.adapters.load import run_workers

Served = tuple[list[float], float]
"""Seconds of each call, in the order in which they ended, and of all together."""


def serve_threads(serve: Callable[[int], object], *, n_clients: int, seconds: float) -> Served:
    """Let so many threads make calls one after another, numbered from 0, until it is over; what was begun is ended."""
    numbers, latencies_s = count(), list[float]()
    start_s = time.perf_counter()

    def client() -> None:
        while (before_s := time.perf_counter()) < start_s + seconds:
            serve(next(numbers))
            latencies_s.append(time.perf_counter() - before_s)

    run_workers(client, n_clients)
    return latencies_s, time.perf_counter() - start_s


def serve_coroutines(serve: Callable[[int], Awaitable[object]], *, n_clients: int, seconds: float) -> Served:
    """The same with coroutines in one event loop."""
    numbers, latencies_s = count(), list[float]()
    start_s = time.perf_counter()

    async def client() -> None:
        while (before_s := time.perf_counter()) < start_s + seconds:
            await serve(next(numbers))
            latencies_s.append(time.perf_counter() - before_s)

    async def all_clients() -> None:
        await asyncio.gather(*(client() for _ in range(n_clients)))

    asyncio.run(all_clients())
    return latencies_s, time.perf_counter() - start_s


class Repeated:
    """A thread that does the same over and over within a `with`; what it raises is raised there."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work, self._stop = work, threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> None:
        self._ended = self._pool.submit(self._repeat)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._ended.result()
        self._pool.shutdown()

    def _repeat(self) -> None:
        while not self._stop.is_set():
            self._work()
