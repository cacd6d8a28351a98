"""Open-loop load: requests arrive when the schedule says so, however far behind the server is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np


def poisson_arrivals(rate_per_s: float, duration_s: float, seed: int = 0) -> list[float]:
    """Seconds from the start at which requests arrive: exponential gaps, as independent users cause them.

    At least one; ends before `duration_s` otherwise.
    """
    random = np.random.default_rng(seed)
    n_likely = int(rate_per_s * duration_s + 10 * (rate_per_s * duration_s) ** 0.5 + 10)
    arrivals = np.cumsum(random.exponential(1 / rate_per_s, n_likely))
    return [float(s) for s in arrivals[: max(1, int(np.searchsorted(arrivals, duration_s)))]]


def run_workers(work: Callable[[], None], n_workers: int) -> None:
    """Let so many threads do `work` at once, or this one alone; raises what one of them does."""
    if n_workers == 1:
        work()
        return
    with ThreadPoolExecutor(n_workers) as pool:
        for worker in [pool.submit(work) for _ in range(n_workers)]:
            worker.result()


def serve_arrivals(
    arrivals_s: Sequence[float],
    serve: Callable[[int], object],
    *,
    patience_s: float = float("inf"),
    n_workers: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> list[float]:
    """Serve request i at `arrivals_s[i]`, or as soon after as a worker is free: seconds from that time to its answer.

    Requests are taken first come first served by `n_workers` threads. Time that a request waits because the server is
    behind counts: leaving it out is the coordinated omission that flatters a closed loop. Once a request has taken more
    than `patience_s` no more are taken, and the latencies end there.
    """
    start_s = clock()
    latencies_s: dict[int, float] = {}
    requests = iter(range(len(arrivals_s)))
    taking, lost_patience = threading.Lock(), threading.Event()

    def work() -> None:
        while True:
            with taking:
                i = None if lost_patience.is_set() else next(requests, None)
            if i is None:
                return
            scheduled_s = start_s + arrivals_s[i]
            if (early_s := scheduled_s - clock()) > 0:
                sleep(early_s)
            serve(i)
            latencies_s[i] = clock() - scheduled_s
            if latencies_s[i] > patience_s:
                lost_patience.set()

    run_workers(work, n_workers)
    return [latencies_s[i] for i in sorted(latencies_s)]
