"""Prefetch, in a thread: the next texts become ids while the engine works on these."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from typing import TypeVar

from mexma_runtime.call.scheduler import Call
from mexma_runtime.process import run_aside

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_ahead(work: Callable[[Item], Result], items: Iterable[Item], call: Call) -> Iterator[Result]:
    """Yield `work(item)` in order, with the next item already worked on in another thread.

    `items` is read in the caller's thread, one item further than what was yielded. An error of `work` is raised here,
    and by the next `call.check()` wherever that is. No work is under way when the iterator has ended, closed early or
    not.
    """
    ahead: Future[Result] | None = None
    try:
        for item in items:
            done = [] if ahead is None else [_result(ahead, call)]
            ahead = run_aside(functools.partial(work, item), "mexma-prefetch")
            ahead.add_done_callback(lambda future: call.fail(future.exception()))
            yield from done
        if ahead is not None:
            yield _result(ahead, call)
    finally:
        if ahead is not None and not call.is_lost():
            wait([ahead])


def _result(future: Future[Result], call: Call) -> Result:
    call.check()
    call.wait(lambda seconds: bool(wait([future], seconds).done))
    return future.result()
