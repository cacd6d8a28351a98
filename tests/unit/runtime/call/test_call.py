"""One call: its turns at the engine, its deadline, its batches, and what an interrupt leaves."""

from __future__ import annotations

import linecache
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest
from tests.unit.runtime.call.conftest import (
    PATIENCE_S,
    ScriptedBackend,
    Started,
    join,
    scheduler_of,
    sentences,
    wait_until,
)

from mexma_runtime import process
from mexma_runtime.call import call as calls
from mexma_runtime.call import fair_queue, request, turns
from mexma_runtime.call import scheduler as scheduling
from mexma_runtime.call.call import Call
from mexma_runtime.call.scheduler import Scheduler
from mexma_runtime.errors import EncodeCancelledError, EncoderClosedError, EncodeTimeoutError
from mexma_runtime.process import NATIVE, run_aside

OURS = tuple(module.__file__ for module in (calls, fair_queue, request, scheduling, turns, process))


def n_queued(scheduler: Scheduler) -> int:
    return len(scheduler.turns._queue)


def test_one_at_a_time_and_all_get_their_turns() -> None:
    scheduler = scheduler_of(ScriptedBackend(), 8)
    inside, most, done = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, done
        with Call(scheduler) as call:
            for _ in range(200):
                with call.turn(alone=False):
                    inside += 1
                    most = max(most, inside)
                    done += 1
                    time.sleep(0)
                    inside -= 1

    assert [thread.join() for thread in [Started(work) for _ in range(8)]] == [None] * 8
    assert (most, done) == (1, 1600)


def test_first_come_first_served() -> None:
    scheduler, order = scheduler_of(ScriptedBackend(), 9), list[int]()
    with Call(scheduler) as call, call.turn(alone=False):
        threads = []
        for i in range(5):

            def work(i: int = i) -> None:
                with Call(scheduler) as mine, mine.turn(alone=False):
                    order.append(i)

            threads.append(Started(work))
            wait_until(lambda i=i: n_queued(scheduler) == i + 1)  # type: ignore[misc]
    assert [thread.join() for thread in threads] == [None] * 5
    assert order == [0, 1, 2, 3, 4]


def test_calls_interleave_turn_by_turn() -> None:
    scheduler, order = scheduler_of(ScriptedBackend(), 9), list[str]()
    first_is_in, go = threading.Event(), threading.Event()

    def work(name: str) -> None:
        with Call(scheduler) as call:
            for i in range(4):
                with call.turn(alone=False):
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


def test_a_wait_times_out_and_leaves_the_queue() -> None:
    scheduler = scheduler_of(ScriptedBackend(), 5)
    with Call(scheduler) as call, call.turn(alone=False):

        def impatient() -> None:
            with Call(scheduler, timeout_s=0.02) as mine, mine.turn(alone=False):
                pass

        assert isinstance(Started(impatient).join(), EncodeTimeoutError)
        assert n_queued(scheduler) == 0
    with Call(scheduler) as call, call.turn(alone=False):
        pass


def test_a_deadline_counts_between_turns() -> None:
    scheduler = scheduler_of(ScriptedBackend(), 0)
    with Call(scheduler, timeout_s=0.02) as call:
        with call.turn(alone=False):
            time.sleep(0.05)
        with pytest.raises(EncodeTimeoutError, match=r"within 0\.02 s"), call.turn(alone=False):
            pass


def test_a_waiting_call_can_be_cancelled() -> None:
    scheduler, cancel = scheduler_of(ScriptedBackend(), 5), threading.Event()
    with Call(scheduler) as call, call.turn(alone=False):

        def unwanted() -> None:
            with Call(scheduler, cancel=cancel) as mine, mine.turn(alone=False):
                pass

        thread = Started(unwanted)
        wait_until(lambda: n_queued(scheduler) == 1)
        cancel.set()
        assert isinstance(thread.join(), EncodeCancelledError)
        assert n_queued(scheduler) == 0


def test_giving_up_while_being_granted_passes_the_turn_on(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = scheduler_of(ScriptedBackend(), 5)
    with Call(scheduler) as call:
        call_turn = call.turn(alone=False)
        call_turn.__enter__()

        def wait_and_raise(is_ready: Callable[[float], bool]) -> None:
            call_turn.__exit__(None, None, None)
            raise EncodeTimeoutError("too late by a hair")

        with Call(scheduler) as other:
            monkeypatch.setattr(other, "wait", wait_and_raise)
            with pytest.raises(EncodeTimeoutError), other.turn(alone=False):
                pass
            with call.turn(alone=False):
                pass


def interrupted_at(line: int, call: Callable[[], object]) -> bool:
    """Whether `call` was interrupted in its so manieth line of ours, as signals come between two statements."""
    n_lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal n_lines
        # No signal comes between the end of a block and its lock's release, or where a try begins.
        code = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        is_line = event == "line" and not code.startswith(("with self._", "try:"))
        n_lines += is_line
        if is_line and n_lines == line:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(lambda frame, *_: trace if frame.f_code.co_filename in OURS else None)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.fixture
def native() -> Iterator[None]:
    """An interrupt may leave this thread counted as in a library, for which forks of others wait a minute."""
    yield
    NATIVE._own.depth = 0
    NATIVE._threads.discard(threading.get_ident())


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("joins", [False, True])
def test_an_interrupt_anywhere_leaves_nothing_taken(joins: bool) -> None:
    backend = ScriptedBackend()
    scheduler = scheduler_of(backend, 0)

    def call() -> None:
        with Call(scheduler) as call:
            if joins:
                join(backend, sentences(1), call)
            else:
                with call.turn(alone=True) as has_engine:
                    assert has_engine
                    run_aside(int).result()

    n_interrupts = 0
    while interrupted_at(n_interrupts + 1, call):
        n_interrupts += 1
        wait_until(lambda: not scheduler._batchers)  # one may be under way still
        assert Started(call).join() is None
        assert (scheduler.n_waiting, backend.n_under_way) == (0, 0)
        with NATIVE._lock:
            assert NATIVE._wait_for_others(PATIENCE_S)
    assert n_interrupts > 40


@pytest.mark.usefixtures("native")
def test_an_interrupt_of_a_lone_call_leaves_a_batcher_behind_it_alone() -> None:
    backend = ScriptedBackend()
    scheduler = scheduler_of(backend)
    others = list[Started]()

    def embed() -> None:
        with Call(scheduler) as call:
            join(backend, sentences(1), call)

    def call() -> None:
        with Call(scheduler) as call, call.turn(alone=True) as has_engine:
            assert has_engine
            others.append(Started(embed))
            wait_until(lambda: n_queued(scheduler) == 1)

    n_interrupts = 0
    while interrupted_at(n_interrupts + 1, call):
        n_interrupts += 1
        assert [other.join() for other in others] == [None] * len(others)
        others.clear()
        assert Started(embed).join() is None
    assert n_interrupts > 25


@pytest.mark.usefixtures("native")
def test_an_interrupt_anywhere_leaves_those_that_wait_alone() -> None:
    backend = ScriptedBackend()
    scheduler = scheduler_of(backend)

    def embed(first_id: int, timeout_s: float) -> None:
        with Call(scheduler, timeout_s=timeout_s) as call:
            join(backend, sentences(first_id), call)

    def call() -> None:
        with suppress(EncodeTimeoutError):
            embed(2, 0.005)

    n_interrupts, was_interrupted = 0, True
    while was_interrupted:
        with backend.held():
            running = Started(lambda: embed(0, PATIENCE_S))
            wait_until(lambda: bool(backend.n_under_way))
            waiting = Started(lambda: embed(1, PATIENCE_S))
            wait_until(lambda: bool(scheduler.n_waiting))
            was_interrupted = interrupted_at(n_interrupts + 1, call)
            n_interrupts += was_interrupted
        assert (running.join(), waiting.join()) == (None, None)
        wait_until(lambda: not scheduler.n_waiting)
    assert n_interrupts > 40


@pytest.mark.usefixtures("native")
def test_who_waits_is_told_wherever_closing_is_interrupted() -> None:
    """And closing once more ends it."""
    n_interrupts, was_interrupted = 0, True
    while was_interrupted:
        backend = ScriptedBackend()
        scheduler = scheduler_of(backend)

        def embed(scheduler: Scheduler = scheduler, backend: ScriptedBackend = backend) -> None:
            with Call(scheduler) as call:
                join(backend, sentences(1), call)

        with backend.held():
            running = Started(embed)
            wait_until(lambda backend=backend: bool(backend.n_under_way))  # type: ignore[misc]
            waiting = Started(embed)
            wait_until(lambda scheduler=scheduler: bool(scheduler.n_waiting))  # type: ignore[misc]
            threading.Timer(0.02, backend.go_on).start()
            was_interrupted = interrupted_at(n_interrupts + 1, scheduler.close)
            n_interrupts += was_interrupted
        closing = [Started(scheduler.close) for _ in range(2)]
        assert running.join() is None
        assert waiting.join() is None or isinstance(waiting.error, EncoderClosedError)
        assert [again.join() for again in closing] == [None] * 2
        assert backend.is_closed
    assert n_interrupts > 10


def test_an_error_inside_a_turn_passes_it_on() -> None:
    scheduler = scheduler_of(ScriptedBackend(), 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), Call(scheduler) as call, call.turn(alone=False):
            raise ZeroDivisionError


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_every_batch_is_finished_and_the_place_given_back_whatever_a_batch_raises(error: type[BaseException]) -> None:
    scheduler, finished = scheduler_of(ScriptedBackend(), 0), []

    def fail() -> None:
        raise error

    def call_with(*batches: Callable[[], None], then: type[Exception] | None = None) -> None:
        with Call(scheduler, max_pending=3) as call:
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
    scheduler = scheduler_of(ScriptedBackend(), 0)
    with Call(scheduler) as call:
        call.fail(None)
        call.check()
        call.fail(ValueError("first"))
        call.fail(ValueError("second"))
        with pytest.raises(ValueError, match="first"), call.turn(alone=False):
            pass
