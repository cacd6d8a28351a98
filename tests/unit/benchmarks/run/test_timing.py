from __future__ import annotations

from itertools import islice

import pytest

from mexma_benchmarks.run.timing import PAUSE_S, rounds


class Clock:
    """Time passes only while a call runs, and while it is paused."""

    def __init__(self) -> None:
        self.now = 0.0
        self.paused: list[float] = []
        self.order: list[str] = []

    def call(self, name: str, seconds: float) -> None:
        self.order.append(name)
        self.now += seconds

    def pause(self, seconds: float) -> None:
        self.paused.append(seconds)
        self.now += seconds


def test_rounds_take_turns_in_alternating_order_and_time_the_call_alone() -> None:
    clock = Clock()
    calls = {"a": lambda: clock.call("a", 0.002), "b": lambda: clock.call("b", 0.005)}

    taken = list(islice(rounds(calls, warmups=1, clock=lambda: clock.now, pause=clock.pause), 2))

    assert "".join(clock.order) == "abbaab"  # three rounds, two of them seen
    assert clock.paused == [PAUSE_S] * 6
    assert [list(row) for row in taken] == [["a", "b"]] * 2
    assert [row["a"] for row in taken] == pytest.approx([2.0] * 2)
    assert [row["b"] for row in taken] == pytest.approx([5.0] * 2)
