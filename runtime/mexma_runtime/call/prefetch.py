"""Prefetch, in a thread: the next texts become ids while the engine works on these."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from mexma_runtime.call.call import Call
from mexma_runtime.process import Begun, run_aside

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_ahead(work: Callable[[Item], Result], items: Iterable[Item], call: Call) -> Iterator[Result]:
    """Yield `work(item)` in order, with the next item already worked on in another thread.

    `items` is read in the caller's thread, one item further than what was yielded. An error of `work` is raised here,
    and by the next `call.check()` wherever that is. No work is under way when the iterator has ended, closed early or
    not.
    """
    ahead: Begun[Result] | None = None

    def work_on(item: Item) -> Result:
        try:
            return work(item)
        except BaseException as error:
            call.fail(error)
            raise

    try:
        for item in items:
            done = [] if ahead is None else [_result(ahead, call)]
            ahead = run_aside(functools.partial(work_on, item))
            yield from done
        if ahead is not None:
            yield _result(ahead, call)
    finally:
        if ahead is not None and not call.is_lost():
            ahead.wait()


def _result(begun: Begun[Result], call: Call) -> Result:
    call.check()
    call.wait(begun.wait)
    return begun.result()
