from __future__ import annotations

import linecache
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from mexma_runtime import process
from mexma_runtime.call import scheduler as scheduling
from mexma_runtime.call.scheduler import Scheduler
from mexma_runtime.errors import (
    EncodeCancelledError,
    EncoderBusyError,
    EncoderClosedError,
    EncodeTimeoutError,
    MexmaError,
    UsageError,
)
from mexma_runtime.process import NATIVE, run_aside

PATIENCE_S = 20


class Started:
    """A thread and what it raised."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.error: MexmaError | None = None
        self.thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self.thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except MexmaError as error:
            self.error = error

    def join(self) -> MexmaError | None:
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        return self.error


def n_queued(scheduler: Scheduler) -> int:
    return len(scheduler._queue)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_one_at_a_time_and_all_get_their_turns() -> None:
    scheduler = Scheduler(max_waiting=8)
    inside, most, done = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, done
        with scheduler.call() as call:
            for _ in range(200):
                with call.turn():
                    inside += 1
                    most = max(most, inside)
                    done += 1
                    time.sleep(0)
                    inside -= 1

    assert [thread.join() for thread in [Started(work) for _ in range(8)]] == [None] * 8
    assert (most, done) == (1, 1600)


def test_first_come_first_served() -> None:
    scheduler, order = Scheduler(max_waiting=9), list[int]()
    with scheduler.call() as call, call.turn():
        threads = []
        for i in range(5):

            def work(i: int = i) -> None:
                with scheduler.call() as mine, mine.turn():
                    order.append(i)

            threads.append(Started(work))
            wait_until(lambda i=i: n_queued(scheduler) == i + 1)  # type: ignore[misc]
    assert [thread.join() for thread in threads] == [None] * 5
    assert order == [0, 1, 2, 3, 4]


def test_calls_interleave_turn_by_turn() -> None:
    scheduler, order = Scheduler(max_waiting=9), list[str]()
    first_is_in, go = threading.Event(), threading.Event()

    def work(name: str) -> None:
        with scheduler.call() as call:
            for i in range(4):
                with call.turn():
                    order.append(name)
                    if name == "first" and i == 0:
                        first_is_in.set()
                        go.wait(PATIENCE_S)

    first = Started(lambda: work("first"))
    first_is_in.wait(PATIENCE_S)
    second = Started(lambda: work("second"))
    wait_until(lambda: n_queued(scheduler) == 1)
    go.set()

    assert first.join() is None
    assert second.join() is None
    assert order[:3] == ["first", "second", "first"]
    assert abs(order[:6].count("first") - order[:6].count("second")) <= 1


def test_the_queue_is_bounded() -> None:
    scheduler = Scheduler(max_waiting=1)
    said = r"2 calls are running or waiting, all that max_waiting=1 admits"
    with scheduler.call(), scheduler.call(), pytest.raises(EncoderBusyError, match=said), scheduler.call():
        pass
    with scheduler.call() as call, call.turn():
        pass


def test_a_negative_bound_is_refused() -> None:
    with pytest.raises(UsageError, match="max_waiting: expected 0 or more, got -1"):
        Scheduler(max_waiting=-1)


def test_a_wait_times_out_and_leaves_the_queue() -> None:
    scheduler = Scheduler(max_waiting=5)
    with scheduler.call() as call, call.turn():

        def impatient() -> None:
            with scheduler.call(timeout_s=0.02) as mine, mine.turn():
                pass

        assert isinstance(Started(impatient).join(), EncodeTimeoutError)
        assert n_queued(scheduler) == 0
    with scheduler.call() as call, call.turn():
        pass


def test_a_deadline_counts_between_turns() -> None:
    scheduler = Scheduler(max_waiting=0)
    with scheduler.call(timeout_s=0.02) as call:
        with call.turn():
            time.sleep(0.05)
        with pytest.raises(EncodeTimeoutError, match=r"within 0\.02 s"), call.turn():
            pass


def test_a_waiting_call_can_be_cancelled() -> None:
    scheduler, cancel = Scheduler(max_waiting=5), threading.Event()
    with scheduler.call() as call, call.turn():

        def unwanted() -> None:
            with scheduler.call(cancel=cancel) as mine, mine.turn():
                pass

        thread = Started(unwanted)
        wait_until(lambda: n_queued(scheduler) == 1)
        cancel.set()
        assert isinstance(thread.join(), EncodeCancelledError)
        assert n_queued(scheduler) == 0


def test_giving_up_while_being_granted_passes_the_turn_on(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(max_waiting=5)
    with scheduler.call() as call:
        call_turn = call.turn()
        call_turn.__enter__()

        def wait_and_raise(is_ready: Callable[[float], bool]) -> None:
            call_turn.__exit__(None, None, None)
            raise EncodeTimeoutError("too late by a hair")

        with scheduler.call() as other:
            monkeypatch.setattr(other, "wait", wait_and_raise)
            with pytest.raises(EncodeTimeoutError), other.turn():
                pass
            with call.turn():
                pass


def test_an_interrupt_anywhere_leaves_nothing_taken() -> None:
    """At each line of ours that a call runs through, in turn, as signals come between two statements."""
    scheduler, files = Scheduler(max_waiting=0), (scheduling.__file__, process.__file__)

    def call() -> None:
        with scheduler.call() as call, call.turn():
            run_aside(int).result()

    def interrupted_at(line: int) -> bool:
        n_lines = 0

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal n_lines
            # No signal comes between the end of such a block and its lock's release.
            is_lock = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip().startswith("with self._")
            n_lines += event == "line" and not is_lock
            if event == "line" and n_lines == line and not is_lock:
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(lambda frame, *_: trace if frame.f_code.co_filename in files else None)
        try:
            call()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    n_interrupts = 0
    while interrupted_at(n_interrupts + 1):
        n_interrupts += 1
        assert Started(call).join() is None
        with NATIVE._lock:
            assert NATIVE._wait_for_others(PATIENCE_S)
    assert n_interrupts > 40


def test_an_error_inside_a_turn_passes_it_on() -> None:
    scheduler = Scheduler(max_waiting=0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), scheduler.call() as call, call.turn():
            raise ZeroDivisionError


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_every_batch_is_finished_and_the_place_given_back_whatever_a_batch_raises(error: type[BaseException]) -> None:
    scheduler, finished = Scheduler(max_waiting=0), []

    def fail() -> None:
        raise error

    def call_with(*batches: Callable[[], None], then: type[Exception] | None = None) -> None:
        with scheduler.call(max_pending=3) as call:
            for finish in batches:
                call.pending.add(finish)
            if then:
                raise then

    with pytest.raises(error):
        call_with(fail, lambda: finished.append(2))
    assert finished == [2]
    # Of two errors the call's own is told, but for an interrupt.
    with pytest.raises(KeyError if error is ValueError else error):
        call_with(fail, then=KeyError)
    call_with()


def test_a_failure_elsewhere_ends_the_call() -> None:
    scheduler = Scheduler(max_waiting=0)
    with scheduler.call() as call:
        call.fail(None)
        call.check()
        call.fail(ValueError("first"))
        call.fail(ValueError("second"))
        with pytest.raises(ValueError, match="first"), call.turn():
            pass


def test_closing_waits_for_the_turn_and_refuses_those_behind() -> None:
    scheduler = Scheduler(max_waiting=9)
    events: list[str] = []
    with scheduler.call() as call:
        turn = call.turn()
        turn.__enter__()

        def late() -> None:
            with scheduler.call() as mine, mine.turn():
                events.append("ran")

        waiting = Started(late)
        wait_until(lambda: n_queued(scheduler) == 1)
        closing = Started(lambda: events.append(f"closed {scheduler.close()}"))
        wait_until(lambda: n_queued(scheduler) == 2)
        assert not events
        turn.__exit__(None, None, None)

        assert isinstance(waiting.join(), EncoderClosedError)
        assert closing.join() is None
        assert events == ["closed True"]
        with pytest.raises(EncoderClosedError), call.turn():
            pass
    assert not scheduler.close()
    with pytest.raises(EncoderClosedError, match="was closed: load the bundle again"), scheduler.call():
        pass
