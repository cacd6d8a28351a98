"""Things that take turns within one run, and how long each turn takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import TypeVar

Sample = TypeVar("Sample")

PAUSE_S = 0.1
"""Lets the threads of one library fall asleep before another's turn: onnxruntime's wait busily for 10 to 50 ms."""


def take_turns(calls: Mapping[str, Callable[[], Sample]]) -> Iterator[dict[str, Sample]]:
    """Make all `calls` once a round, without end: what each gave. The order is reversed every other round."""
    order = list(calls)
    while True:
        taken = {name: calls[name]() for name in order}
        yield {name: taken[name] for name in calls}
        order.reverse()


def by_name(turns: Iterable[Mapping[str, Sample]], n_rounds: int) -> dict[str, list[Sample]]:
    """What each call gave in the first `n_rounds`, of which there is at least one."""
    taken = list(islice(turns, n_rounds))
    return {name: [of_round[name] for of_round in taken] for name in taken[0]}


def rounds(
    calls: Mapping[str, Callable[[], object]],
    *,
    warmups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[dict[str, float]]:
    """`take_turns` within this process: the ms of each call, after rounds of warm-up that are not seen."""

    def timed(call: Callable[[], object]) -> float:
        pause(PAUSE_S)
        start = clock()
        call()
        return (clock() - start) * 1e3

    return islice(take_turns({name: partial(timed, call) for name, call in calls.items()}), warmups, None)
