"""The way of one call in an event loop of asyncio, which nothing here blocks for long."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from contextlib import suppress

from mexma_runtime.call.call import Call, Take
from mexma_runtime.call.execution import INLINE_TEXTS, WINDOW_TEXTS, Execution, Sink
from mexma_runtime.call.options import EncodeOptions
from mexma_runtime.call.request import Request
from mexma_runtime.process import NATIVE
from mexma_runtime.text.tokenizer import Tokenized
from mexma_runtime.types import Vectors

INLINE_CHARS = 4096
"""Texts of so many characters together are tokenized in the loop's own thread, which takes about a millisecond."""


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

    if len(texts) <= INLINE_TEXTS and sum(map(len, texts)) <= INLINE_CHARS:
        await compute(tokenize(0))
        return n_truncated
    starts = range(0, len(texts), WINDOW_TEXTS)
    if execution.may_refuse(texts, options):
        for tokens in [await asyncio.to_thread(tokenize, start) for start in starts]:
            await compute(tokens)
        return n_truncated
    ahead = asyncio.ensure_future(asyncio.to_thread(tokenize, 0))
    try:
        for start in starts:
            tokens = await ahead
            if start < starts[-1]:
                ahead = asyncio.ensure_future(asyncio.to_thread(tokenize, start + WINDOW_TEXTS))
            await compute(tokens)
    finally:
        ahead.cancel()
    return n_truncated


async def _join(call: Call, request: Request, take: Take) -> None:
    """`Call.join`, but that the thread goes on with others meanwhile."""
    loop, woken = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with suppress(RuntimeError):  # the loop was closed, and nobody waits
            loop.call_soon_threadsafe(woken.set)

    late = None if call.deadline == math.inf else loop.call_later(call.deadline - time.monotonic(), woken.set)
    try:
        with call.joined(request, wake):
            while not call.take_parts(request, take):
                await woken.wait()
                woken.clear()
    finally:
        if late:
            late.cancel()
