"""Prefetch, in a thread: the next texts become ids while the engine works on these."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from mexma_runtime.call.scheduler import Call

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_ahead(work: Callable[[Item], Result], items: Iterable[Item], call: Call) -> Iterator[Result]:
    """Yield `work(item)` in order, with the next item already worked on in another thread.

    `items` is read in the caller's thread, one item further than what was yielded. An error of `work` is raised here,
    and by the next `call.check()` wherever that is. The thread has ended when the iterator has, closed early or not.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="mexma-prefetch") as pool:
        try:
            for item in items:
                future = pool.submit(work, item)
                future.add_done_callback(lambda done: call.fail(None if done.cancelled() else done.exception()))
                pending.append(future)
                if len(pending) > 1:
                    yield _result(pending.popleft(), call)
            while pending:
                yield _result(pending.popleft(), call)
        finally:
            for future in pending:
                future.cancel()


def _result(future: Future[Result], call: Call) -> Result:
    call.wait(lambda seconds: bool(wait([future], seconds).done))
    return future.result()
