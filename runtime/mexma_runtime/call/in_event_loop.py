"""The way of one call in an event loop of asyncio, which nothing here blocks for long."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from mexma_runtime.call.call import Call, Take
from mexma_runtime.call.execution import INLINE_TEXTS, WINDOW_TEXTS, Execution, Sink
from mexma_runtime.call.options import EncodeOptions
from mexma_runtime.call.request import Request
from mexma_runtime.process import NATIVE, run_aside
from mexma_runtime.text.tokenizer import Tokenized
from mexma_runtime.types import Vectors

INLINE_CHARS = 4096
"""Texts of so many characters together are tokenized in the loop's own thread, which takes about a millisecond."""
TIMER_S = 0.001
"""A loop's timer may come so early."""


async def embed_texts(
    execution: Execution, texts: Sequence[str], out: Vectors, options: EncodeOptions, call: Call
) -> int:
    """Write the vector of each of `texts`, which are str, into its row of `out`, `(n, dim)`; how many were cut.

    Raises as `Call.join` does.
    """
    n_done = n_truncated = 0

    async def compute(tokens: Tokenized) -> None:
        nonlocal n_done, n_truncated
        rows = out[n_done : n_done + len(tokens.ragged)]
        if len(rows):
            request = execution.request(tokens.ragged, options, call, first_index=n_done)
            await _join(call, request, Sink(rows, normalize=options.normalize and not request.in_graph).take)
        n_done += len(rows)
        n_truncated += int(tokens.truncated.sum())

    def tokenize(start: int) -> Tokenized:
        with NATIVE:
            return execution.tokenize(texts[start : start + WINDOW_TEXTS], options, start)

    if len(texts) <= INLINE_TEXTS and sum(map(len, texts)) + len(texts) * len(options.prompt) <= INLINE_CHARS:
        call.check()
        await compute(tokenize(0))
        return n_truncated
    starts = range(0, len(texts), WINDOW_TEXTS)
    if execution.may_refuse(texts, options):
        for tokens in [await _Aside(tokenize, start).result(call) for start in starts]:
            await compute(tokens)
        return n_truncated
    ahead = _Aside(tokenize, 0)
    for start in starts:
        tokens = await ahead.result(call)
        if start < starts[-1]:
            ahead = _Aside(tokenize, start + WINDOW_TEXTS)
        await compute(tokens)
    return n_truncated


async def _join(call: Call, request: Request, take: Take) -> None:
    """`Call.join`, but that the thread goes on with others meanwhile."""
    bell = _Bell()
    with call.joined(request, bell.ring):
        while not call.take_parts(request, take):
            if not call.help():
                await bell.wait(call)


class _Bell:
    """Wakes a coroutine from any thread."""

    def __init__(self) -> None:
        self._loop, self._rung = asyncio.get_running_loop(), asyncio.Event()

    def ring(self) -> None:
        """Wake it; nothing where its loop was closed."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._rung.set)

    async def wait(self, call: Call) -> None:
        """Return when it rings, or at the call's deadline."""
        late = None
        if call.deadline < math.inf:
            late = self._loop.call_later(call.deadline - time.monotonic() + TIMER_S, self._rung.set)
        try:
            await self._rung.wait()
            self._rung.clear()
        finally:
            if late:
                late.cancel()


class _Aside:
    """Texts that are tokenized in a thread, for a coroutine to wait for."""

    def __init__(self, tokenize: Callable[[int], Tokenized], start: int) -> None:
        self._bell = _Bell()
        self._outcome: Tokenized | BaseException | None = None
        run_aside(functools.partial(self._run, tokenize, start))

    def _run(self, tokenize: Callable[[int], Tokenized], start: int) -> None:
        try:
            self._outcome = tokenize(start)
        except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it
            self._outcome = error
        self._bell.ring()

    async def result(self, call: Call) -> Tokenized:
        """What comes of it; raises as `Call.check` does."""
        while self._outcome is None:
            call.check()
            await self._bell.wait(call)
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome
