from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma_benchmarks.adapters.load import poisson_arrivals, serve_arrivals


class Clock:
    """Time passes while a request is served and while the server waits for one."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s = 0.0

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept_s += seconds

    def serve(self, seconds: float) -> None:
        self.now_s += seconds


def served(arrivals_s: list[float], service_s: float, patience_s: float = float("inf")) -> tuple[list[float], Clock]:
    clock = Clock()
    latencies_s = serve_arrivals(
        arrivals_s,
        lambda _: clock.serve(service_s),
        patience_s=patience_s,
        clock=lambda: clock.now_s,
        sleep=clock.sleep,
    )
    return latencies_s, clock


def test_an_idle_server_answers_in_its_service_time() -> None:
    latencies_s, clock = served([1.0, 2.0, 3.5], 0.25)

    assert latencies_s == pytest.approx([0.25] * 3)
    assert clock.slept_s == pytest.approx(1.0 + 0.75 + 1.25)


def test_waiting_behind_others_counts_from_the_scheduled_arrival() -> None:
    """Closed-loop timing would say 1 s for all of them: the coordinated omission."""
    latencies_s, clock = served([0.0, 0.1, 0.2, 10.0], 1.0)

    assert latencies_s == pytest.approx([1.0, 1.9, 2.8, 1.0])
    assert clock.slept_s == pytest.approx(7.0)


@given(
    st.lists(st.floats(0, 5), min_size=1, max_size=30).map(sorted),
    st.floats(0.01, 2),
)
def test_one_worker_is_a_queue_first_come_first_served(arrivals_s: list[float], service_s: float) -> None:
    free_s, expected = 0.0, []
    for arrival_s in arrivals_s:
        free_s = max(free_s, arrival_s) + service_s
        expected.append(free_s - arrival_s)

    assert served(arrivals_s, service_s)[0] == pytest.approx(expected)


def test_a_run_that_falls_behind_for_good_is_given_up() -> None:
    latencies_s, _ = served([0.0] * 100, 1.0, patience_s=4.5)

    assert latencies_s == pytest.approx([1.0, 2.0, 3.0, 4.0, 5.0])


def test_workers_serve_side_by_side_and_latencies_stay_in_the_order_of_arrival() -> None:
    together = threading.Barrier(3, timeout=30)  # nobody passes alone

    def serve(i: int) -> None:
        together.wait()
        time.sleep(0.05 if i == 0 else 0)

    latencies_s = serve_arrivals([0.0, 0.0, 0.0], serve, n_workers=3)

    assert len(latencies_s) == 3
    assert latencies_s[0] == max(latencies_s)


def test_what_a_worker_raises_reaches_the_caller() -> None:
    def fail(i: int) -> None:
        raise RuntimeError(f"request {i}")

    for n_workers in (1, 2):
        with pytest.raises(RuntimeError, match="request"):
            serve_arrivals([0.0], fail, n_workers=n_workers)


def test_arrivals_are_a_poisson_process() -> None:
    arrivals_s = np.array(poisson_arrivals(200, 100, seed=3))
    gaps_s = np.diff(arrivals_s)

    assert len(arrivals_s) == pytest.approx(20_000, rel=0.03)
    assert gaps_s.mean() == pytest.approx(1 / 200, rel=0.03)
    assert gaps_s.std() == pytest.approx(1 / 200, rel=0.03)  # of an exponential: its mean
    assert 0 < arrivals_s[0] < arrivals_s[-1] < 100


def test_arrivals_are_the_same_every_time_and_never_none() -> None:
    assert poisson_arrivals(3, 10, seed=1) == poisson_arrivals(3, 10, seed=1)
    assert poisson_arrivals(3, 10, seed=1) != poisson_arrivals(3, 10, seed=2)
    assert len(poisson_arrivals(0.001, 1)) == 1
