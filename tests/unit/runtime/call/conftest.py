"""A backend whose batches last as long as a test wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mexma_runtime.backends.base import BackendInfo, Finish, OnRows, done
from mexma_runtime.batching import BatchPolicy, Grouping, rows_left
from mexma_runtime.call.call import Call
from mexma_runtime.call.request import Request
from mexma_runtime.call.scheduler import Scheduler
from mexma_runtime.device_vectors import DeviceRows, DeviceVectors
from mexma_runtime.types import Ragged, Vectors

PATIENCE_S = 20
DIM = 2


class ScriptedBackend:
    """Gives a sentence its first id and its length as its vector."""

    def __init__(
        self,
        grouping: Grouping = Grouping.EQUAL,
        *,
        max_batch_tokens: int = 64,
        n_pending: int = 1,
        normalizes: bool = False,
    ) -> None:
        policy = BatchPolicy(max_batch_tokens=max_batch_tokens, grouping=grouping)
        self.info = BackendInfo(
            backend="scripted",
            version="1",
            device="cpu",
            providers=(),
            n_threads=1,
            spinning=False,
            processor="none",
            policy=policy,
            n_pending=n_pending,
            normalizes=normalizes,
        )
        self.copy_s = self.compute_s = 0.0
        self.batches: list[list[int]] = []
        """Of each, the first ids of its sentences."""
        self.error_of: Callable[[list[int]], BaseException | None] = lambda _: None
        """What a batch fails with."""
        self.n_early = 0
        """So many sentences of a larger batch are done before it ends or fails."""
        self.n_under_way = self.most_under_way = 0
        self.is_closed = False
        self._may_go_on = threading.Event()
        self._may_go_on.set()
        self._in_start = threading.Lock()
        self._counting = threading.Lock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """No batch ends within."""
        self._may_go_on.clear()
        yield
        self.go_on()

    def go_on(self) -> None:
        """Let batches end."""
        self._may_go_on.set()

    def start(
        self, batch: Ragged, out: Vectors | DeviceRows, *, normalize: bool, on_rows: OnRows | None = None
    ) -> Finish:
        assert isinstance(out, np.ndarray)
        assert self._in_start.acquire(blocking=False), "two threads at once"
        try:
            first_ids = [int(batch[row][0]) for row in range(len(batch))]
            self.batches.append(first_ids)
            self._count(1)
            if self.info.n_pending == 1:
                self._finish(batch, out, first_ids, normalize, on_rows)
                return done
            return lambda: self._finish(batch, out, first_ids, normalize, on_rows)
        finally:
            self._in_start.release()

    def _finish(
        self, batch: Ragged, out: Vectors, first_ids: list[int], normalize: bool, on_rows: OnRows | None
    ) -> None:
        assert self._may_go_on.wait(PATIENCE_S)
        self._count(-1)
        vectors = np.array([first_ids, batch.lengths], dtype=np.float32).T
        if normalize:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        if on_rows and 0 < self.n_early < len(batch):
            out[-self.n_early :] = vectors[-self.n_early :]
            on_rows(np.arange(len(batch))[: -self.n_early - 1 : -1])
        if error := self.error_of(first_ids):
            raise error
        out[:] = vectors

    def _count(self, n: int) -> None:
        with self._counting:
            self.n_under_way += n
            self.most_under_way = max(self.most_under_way, self.n_under_way)

    def device_vectors(self, shape: tuple[int, ...]) -> DeviceVectors:
        raise NotImplementedError

    def close(self) -> None:
        assert not self.n_under_way
        self.is_closed = True


def sentences(*first_ids: int, length: int = 4) -> Ragged:
    """One for each, all of one length."""
    return Ragged.from_sequences([[first_id] + [0] * (length - 1) for first_id in first_ids])


def request_of(
    backend: ScriptedBackend, ragged: Ragged, call: Call, *, in_graph: bool = False, first_index: int = 0
) -> Request:
    """All of `ragged`."""
    return Request(
        ragged=ragged,
        left=rows_left(ragged.lengths, backend.info.policy),
        in_graph=in_graph,
        first_index=first_index,
        deadline=call.deadline,
        cancel=call.cancel,
    )


def join(backend: ScriptedBackend, ragged: Ragged, call: Call, **options: Any) -> Vectors:
    """The vectors of `ragged`, computed with what else waits; NaN where none came."""
    out = np.full((len(ragged), DIM), np.nan, dtype=np.float32)
    call.join(request_of(backend, ragged, call, **options), out.__setitem__)
    return out


class Started:
    """A thread, what it returned and what it raised."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.error: BaseException | None = None
        self.result: object = None
        self.thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self.thread.start()

    def _run(self, work: Callable[[], object]) -> None:
        try:
            self.result = work()
        except BaseException as error:  # noqa: BLE001 - for the test to see
            self.error = error

    def join(self) -> BaseException | None:
        """What it raised, when it has ended."""
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        return self.error


def wait_until(is_so: Callable[[], bool]) -> None:
    """Look again and again."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def scheduler_of(backend: ScriptedBackend, max_waiting: int = 1000) -> Scheduler:
    return Scheduler(backend, dim=DIM, max_waiting=max_waiting)
