"""What waits while the engine is taken is joined; here the engine's batches last as long as a test wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.runtime.call.conftest import (
    ScriptedBackend,
    Started,
    join,
    scheduler_of,
    sentences,
    wait_until,
)

from mexma_runtime.batching import Grouping
from mexma_runtime.call.call import Call
from mexma_runtime.call.scheduler import Scheduler
from mexma_runtime.errors import (
    DeviceMemoryError,
    EncodeCancelledError,
    EncoderBusyError,
    EncoderClosedError,
    EncodeTimeoutError,
    EngineFailedError,
    InputError,
    UsageError,
)
from mexma_runtime.types import Ragged, Vectors


class Engine:
    """A scheduler and its backend, held by a first batch until `release`; what joins meanwhile waits."""

    def __init__(self, backend: ScriptedBackend) -> None:
        self.backend, self.scheduler = backend, scheduler_of(backend)
        self._hold = backend.held()
        self._hold.__enter__()
        self._others: list[Started] = []
        for n in range(1, backend.info.n_pending + 1):
            self._begin(sentences(1000 + n))
            wait_until(lambda n=n: len(backend.batches) == n)  # type: ignore[misc]

    def join(self, ragged: Ragged, **options: Any) -> Started:
        """Embed in a thread: it returns the vectors. Waits until its rows do."""
        n_waiting = self.scheduler.n_waiting
        started = self._begin(ragged, **options)
        wait_until(lambda: self.scheduler.n_waiting > n_waiting)
        return started

    def _begin(self, ragged: Ragged, *, first_index: int = 0, in_graph: bool = False, **options: Any) -> Started:
        def work() -> Vectors:
            with Call(self.scheduler, **options) as call:
                return join(self.backend, ragged, call, first_index=first_index, in_graph=in_graph)

        started = Started(work)
        self._others.append(started)
        return started

    def release(self) -> list[list[int]]:
        """Let all batches end: the first ids of those that came after the held ones."""
        self._hold.__exit__(None, None, None)
        for other in self._others:
            other.join()
        return self.backend.batches[self.backend.info.n_pending :]


def test_what_waits_becomes_one_batch_and_each_gets_its_rows() -> None:
    engine = Engine(ScriptedBackend())
    calls = [engine.join(sentences(1, 2)), engine.join(sentences(3)), engine.join(sentences(4, 5, 6))]

    assert sorted(map(sorted, engine.release())) == [[1, 2, 3, 4, 5, 6]]
    assert [np.array(call.result)[:, 0].tolist() for call in calls] == [[1, 2], [3], [4, 5, 6]]


@pytest.mark.parametrize("n_pending", [1, 2, 3])
def test_as_many_batches_are_under_way_as_may_be(n_pending: int) -> None:
    backend = ScriptedBackend(n_pending=n_pending, max_batch_tokens=8)
    engine = Engine(backend)
    calls = [engine.join(sentences(i)) for i in range(20)]

    engine.release()

    assert [np.array(call.result)[:, 0].tolist() for call in calls] == [[i] for i in range(20)]
    assert backend.most_under_way <= n_pending


@given(
    st.sampled_from(Grouping),
    st.integers(1, 3),
    st.integers(0, 4),
    st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=30), min_size=1, max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_every_row_comes_once_whatever_joins(
    grouping: Grouping, n_pending: int, n_early: int, calls: list[list[int]]
) -> None:
    backend = ScriptedBackend(grouping, max_batch_tokens=24, n_pending=n_pending)
    backend.n_early = n_early
    scheduler = scheduler_of(backend)
    numbered = iter(range(10**6))
    raggeds = [Ragged.from_sequences([[next(numbered)] + [0] * (n - 1) for n in lengths]) for lengths in calls]

    def embed(ragged: Ragged) -> Vectors:
        with Call(scheduler) as call:
            return join(backend, ragged, call)

    threads = [Started(lambda ragged=ragged: embed(ragged)) for ragged in raggeds]  # type: ignore[misc]
    assert [thread.join() for thread in threads] == [None] * len(threads)
    for thread, ragged in zip(threads, raggeds, strict=True):
        expected = [[ragged[row][0], ragged.lengths[row]] for row in range(len(ragged))]
        np.testing.assert_array_equal(np.array(thread.result), expected)
    assert sorted(first_id for batch in backend.batches for first_id in batch) == list(range(next(numbered)))


def test_an_engine_gives_length_1_to_a_whole_batch() -> None:
    engine = Engine(ScriptedBackend(normalizes=True))
    unit, plain = engine.join(sentences(3, 8), in_graph=True), engine.join(sentences(5))

    assert sorted(engine.release()) == [[3, 8], [5]]
    np.testing.assert_allclose(np.array(unit.result), [[0.6, 0.8], [8 / 80**0.5, 4 / 80**0.5]], rtol=1e-6)
    np.testing.assert_array_equal(np.array(plain.result), [[5, 4]])


def test_a_cancelled_call_is_in_no_later_batch() -> None:
    engine, cancel = Engine(ScriptedBackend()), threading.Event()
    unwanted, wanted = engine.join(sentences(1, 2), cancel=cancel), engine.join(sentences(3))

    cancel.set()
    batches = engine.release()

    assert batches == [[3]]
    assert isinstance(unwanted.error, EncodeCancelledError)
    assert np.array(wanted.result).tolist() == [[3, 4]]


def test_a_cancel_signal_that_works_in_its_own_thread_alone_hurts_nobody() -> None:
    class OfOneThread:
        thread: int | None = None

        def is_set(self) -> bool:
            self.thread = self.thread or threading.get_ident()
            if self.thread != threading.get_ident():
                raise RuntimeError("outside of its thread")
            return False

    engine = Engine(ScriptedBackend())
    calls = [engine.join(sentences(1), cancel=OfOneThread()), engine.join(sentences(2))]

    assert engine.release() == [[1, 2]]
    assert [call.error for call in calls] == [None, None]


def test_a_call_may_leave_a_batch_that_is_under_way() -> None:
    backend, cancel = ScriptedBackend(), threading.Event()
    scheduler = scheduler_of(backend)

    def embed() -> None:
        with Call(scheduler, cancel=cancel) as call:
            join(backend, sentences(1), call)

    with backend.held():
        unwanted = Started(embed)
        wait_until(lambda: len(backend.batches) == 1)
        cancel.set()
        assert isinstance(unwanted.join(), EncodeCancelledError)
        assert backend.n_under_way == 1
    with Call(scheduler) as call:
        assert join(backend, sentences(2), call).tolist() == [[2, 4]]


def test_what_is_late_is_not_computed() -> None:
    engine = Engine(ScriptedBackend())
    late, patient = engine.join(sentences(1), timeout_s=0.02), engine.join(sentences(2), timeout_s=60)
    assert isinstance(late.join(), EncodeTimeoutError)
    assert engine.release() == [[2]]
    assert patient.error is None


def test_what_would_be_late_is_not_computed_either() -> None:
    """By half the time of the fastest batch so far."""
    backend = ScriptedBackend(max_batch_tokens=40)
    engine = Engine(backend)
    time.sleep(0.4)  # the held batch, which is the fastest
    hopeless = engine.join(sentences(*range(1, 31)), timeout_s=0.5)  # three batches
    other = engine.join(sentences(50, length=5), timeout_s=60)

    assert engine.release() == [[50]]
    assert isinstance(hopeless.error, EncodeTimeoutError)
    assert other.error is None


def test_the_guilty_call_fails_alone() -> None:
    backend = ScriptedBackend()
    engine = Engine(backend)
    backend.error_of = lambda ids: ValueError("seven") if 7 in ids else None
    calls = [engine.join(sentences(i, 10 + i)) for i in range(5, 9)]

    batches = engine.release()

    assert [type(call.error) for call in calls] == [type(None), type(None), ValueError, type(None)]
    assert [7, 17] in batches
    with Call(engine.scheduler) as call:
        join(backend, sentences(1), call)


def test_an_input_is_named_by_its_index() -> None:
    backend = ScriptedBackend()
    engine = Engine(backend)
    backend.error_of = lambda ids: InputError("too much") if 7 in ids else None
    good, bad = engine.join(sentences(1)), engine.join(sentences(7), first_index=30)

    engine.release()

    assert good.error is None
    assert str(bad.error) == "input 30: too much"
    assert isinstance(bad.error, InputError)
    assert bad.error.index == 30


def test_who_has_left_is_in_no_half_of_a_batch_that_failed() -> None:
    backend, cancel = ScriptedBackend(), threading.Event()
    engine = Engine(backend)

    def fail(ids: list[int]) -> Exception | None:
        if 7 in ids:
            cancel.set()
            return ValueError("seven")
        return None

    backend.error_of = fail
    calls = [engine.join(sentences(i)) for i in (1, 2, 7)] + [engine.join(sentences(3), cancel=cancel)]

    batches = engine.release()

    assert [type(call.error) for call in calls] == [type(None), type(None), ValueError, EncodeCancelledError]
    assert sum(3 in batch for batch in batches) == 1


def test_what_is_done_early_is_out_before_the_batch_ends() -> None:
    backend = ScriptedBackend()
    engine = Engine(backend)
    calls = [engine.join(sentences(*ids)) for ids in ((1, 2), (3, 4), (5,))]
    backend.n_early = 3

    def wait_for_them(ids: list[int]) -> None:
        if len(ids) > 1:
            wait_until(lambda: all(calls[i].result is not None for i in (1, 2)))

    backend.error_of = wait_for_them
    assert engine.release() == [[1, 2, 3, 4, 5]]
    assert [np.array(call.result)[:, 0].tolist() for call in calls] == [[1, 2], [3, 4], [5]]


def test_what_is_out_is_not_computed_again_where_the_rest_fails() -> None:
    backend = ScriptedBackend()
    engine = Engine(backend)
    backend.error_of = lambda ids: ValueError("broken") if 1 in ids else None
    backend.n_early = 2
    calls = [engine.join(sentences(*ids)) for ids in ((1, 2), (3, 4), (5,))]

    assert engine.release() == [[1, 2, 3, 4, 5], [1, 2], [3]]
    assert [type(call.error) for call in calls] == [ValueError, type(None), type(None)]
    assert np.array(calls[1].result)[:, 0].tolist() == [3, 4]


@pytest.mark.parametrize("calls_ids", [((1,), (2,), (3,)), ((1,), (2, 3))])
def test_an_engine_that_did_a_part_of_a_batch_is_not_failed(calls_ids: tuple[tuple[int, ...], ...]) -> None:
    backend = ScriptedBackend()
    engine = Engine(backend)
    backend.error_of = lambda ids: ValueError("broken") if min(ids) < 3 else None
    backend.n_early = 1
    calls = [engine.join(sentences(*ids)) for ids in calls_ids]

    engine.release()

    assert [type(call.error) for call in calls] == [ValueError if ids[0] < 3 else type(None) for ids in calls_ids]
    with Call(engine.scheduler) as call:
        assert join(backend, sentences(4), call).tolist() == [[4, 4]]


def test_an_engine_that_fails_for_all_is_failed_and_says_so_at_once() -> None:
    backend = ScriptedBackend(max_batch_tokens=8)
    engine = Engine(backend)
    backend.error_of = lambda ids: RuntimeError(f"broken at {ids}") if ids[0] < 1000 else None
    calls = [engine.join(sentences(i)) for i in range(6)]

    engine.release()

    kinds = [type(call.error) for call in calls]
    assert kinds.count(RuntimeError) == 2
    assert kinds.count(EngineFailedError) == 4
    assert len(backend.batches) == 1 + 3
    said = r"the engine failed for each of 2 calls .* load the bundle again.* It said: broken at \[0, 1\]"
    with pytest.raises(EngineFailedError, match=said), Call(engine.scheduler):
        pass


@pytest.mark.parametrize("error", [InputError, DeviceMemoryError, MemoryError])
def test_inputs_that_fail_leave_the_engine_usable(error: type[Exception]) -> None:
    backend = ScriptedBackend()
    engine = Engine(backend)
    backend.error_of = lambda ids: error("no room") if ids[0] < 1000 else None
    calls = [engine.join(sentences(i)) for i in range(3)]

    engine.release()

    assert [type(call.error) for call in calls] == [error] * 3
    with Call(engine.scheduler):
        pass


def test_a_call_that_fails_alone_leaves_the_engine_usable() -> None:
    backend = ScriptedBackend()
    scheduler = scheduler_of(backend)
    backend.error_of = lambda _: RuntimeError("once")
    with pytest.raises(RuntimeError, match="once"), Call(scheduler) as call:
        join(backend, sentences(1), call)
    backend.error_of = lambda _: None
    with Call(scheduler) as call:
        join(backend, sentences(1), call)


def test_closing_waits_for_the_batch_and_refuses_those_that_wait() -> None:
    engine = Engine(ScriptedBackend())
    waiting = [engine.join(sentences(i)) for i in range(3)]
    closing = Started(engine.scheduler.close)
    time.sleep(0.05)
    assert closing.thread.is_alive()
    assert not engine.backend.is_closed

    assert engine.release() == []

    assert [type(call.error) for call in waiting] == [EncoderClosedError] * 3
    assert closing.join() is None
    assert engine.backend.is_closed
    engine.scheduler.close()
    with pytest.raises(EncoderClosedError, match="was closed: load the bundle again"), Call(engine.scheduler):
        pass


def test_the_queue_is_bounded() -> None:
    scheduler = scheduler_of(ScriptedBackend(), max_waiting=1)
    said = r"2 calls are running or waiting, all that max_waiting=1 admits"
    with Call(scheduler), Call(scheduler), pytest.raises(EncoderBusyError, match=said), Call(scheduler):
        pass
    with Call(scheduler) as call, call.turn(alone=True) as has_engine:
        assert has_engine


def test_a_negative_bound_is_refused() -> None:
    with pytest.raises(UsageError, match="max_waiting: expected 0 or more, got -1"):
        Scheduler(ScriptedBackend(), dim=2, max_waiting=-1)


@pytest.mark.parametrize("n_pending", [1, 2])
def test_batches_are_run_by_callers_where_no_thread_can_be_had(monkeypatch: pytest.MonkeyPatch, n_pending: int) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("mexma_runtime.call.scheduler._thread.start_new_thread", refuse)
    backend = ScriptedBackend(max_batch_tokens=8, n_pending=n_pending)
    scheduler = scheduler_of(backend)

    def embed(first_id: int) -> None:
        for i in range(20):
            with Call(scheduler, timeout_s=60) as call:
                assert join(backend, sentences(first_id, first_id, i), call)[:, 0].tolist() == [first_id, first_id, i]

    threads = [Started(lambda i=i: embed(i)) for i in range(8)]  # type: ignore[misc]
    assert [thread.join() for thread in threads] == [None] * 8
    assert scheduler.n_waiting == 0


def test_who_runs_batches_for_lack_of_a_thread_leaves_with_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("mexma_runtime.call.scheduler._thread.start_new_thread", refuse)
    backend = ScriptedBackend(max_batch_tokens=8)
    scheduler, until = scheduler_of(backend), time.monotonic() + 1

    def embed_on() -> None:
        while time.monotonic() < until:
            with Call(scheduler) as call:
                join(backend, sentences(*range(10)), call)

    others = [Started(embed_on) for _ in range(3)]
    with Call(scheduler) as call:
        join(backend, sentences(1), call)
    assert time.monotonic() < until
    assert [other.join() for other in others] == [None] * 3


def test_an_interrupt_of_who_waits_leaves_the_others_alone() -> None:
    engine = Engine(ScriptedBackend())

    def interrupted(is_ready: Callable[[float], bool]) -> None:
        raise KeyboardInterrupt

    call = Call(engine.scheduler)
    call.wait = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt), call:
        join(engine.backend, sentences(1), call)
    other = engine.join(sentences(2))

    assert engine.release() == [[2]]
    assert other.error is None
