"""PyTorch on the same ids, in a process of its own: what hangs there is ended, and its memory is not ours."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from mexma_benchmarks.adapters.protocol import Task
from mexma_benchmarks.gpu_check.work import Work
from mexma_export.checkpoint.sources import Source
from mexma_runtime.bundle.manifest import Manifest
from mexma_runtime.errors import MexmaError
from mexma_runtime.types import Vectors

if TYPE_CHECKING:
    from mexma_benchmarks.adapters.pytorch import PyTorch

START_S = 90.0
ANSWER_S = 90.0
"""No answer takes so long but one that never comes."""
END_S = 5.0


class PyTorchError(MexmaError):
    """PyTorch could not do what it was asked, or not in time; the message is the reason."""


def task_for(
    source: Source, manifest: Manifest, *, device: str, n_threads: int, options: dict[str, bool | str]
) -> Task:
    """What the adapter of the benchmarks is given; `options` are those of adapters/pytorch.py."""
    return Task(
        checkpoint=str(source.folder),
        tokenizer=str(source.tokenizer.parent),
        pooling=manifest.pooling_mode,
        is_normalized=manifest.is_normalized,
        max_tokens=manifest.text.max_tokens,
        n_threads=n_threads,
        device=device,
        folder="",
        first_text="",
        options=options,
    )


class PyTorchProcess:
    """One way to run the checkpoint; leaving a `with` ends it."""

    def __init__(self, task: Task) -> None:
        """Start it; `wait_ready` waits for it."""
        spawn = multiprocessing.get_context("spawn")  # a fork would share our CUDA context, which does not work
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, task))
        self._process.start()
        theirs.close()
        self._is_ready, self._reason = False, ""

    def wait_ready(self) -> None:
        """Return when the model is loaded; PyTorchError says why it is not."""
        if not self._is_ready:
            self._answer(START_S)
            self._is_ready = True

    def vectors(self, work: Work) -> Vectors:
        """float32 `(n, dim)`, in input order."""
        vectors: Vectors = self._ask("vectors", work)
        return vectors

    def times_ms(self, work: Work, n_calls: int = 1, *, limit_s: float = ANSWER_S) -> list[float]:
        """ms of each of `n_calls`, one right after the other: ids in, vectors on the host."""
        times_ms: list[float] = self._ask("times_ms", work, n_calls, limit_s=limit_s)
        return times_ms

    def close(self) -> None:
        """End it, whatever it is doing; calling it twice is fine."""
        self._connection.close()  # it ends by itself, unless it is busy
        self._process.join(END_S)
        self._process.kill()
        self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, what: str, *arguments: Any, limit_s: float = ANSWER_S) -> Any:
        self.wait_ready()
        with suppress(OSError):  # what it died of is read below
            self._connection.send((what, arguments))
        return self._answer(limit_s)

    def _answer(self, limit_s: float) -> Any:
        """PyTorchError where there is none: the process is ended then, and every later answer is the same."""
        answer = None
        if not self._reason:
            try:
                is_there = self._connection.poll(limit_s)
                answer, self._reason = self._connection.recv() if is_there else (None, f"no answer in {limit_s:.0f} s")
            except (EOFError, OSError):
                self._process.join()
                self._reason = f"its process ended (exit status {self._process.exitcode})"
        if self._reason:
            self.close()
            raise PyTorchError(self._reason)
        return answer


def _serve(connection: Connection[Any, Any], task: Task) -> None:
    """The other process: answers until nobody asks any more."""
    do: dict[str, Callable[..., Any]] = {"vectors": _vectors, "times_ms": _times_ms}
    try:
        model = _open(task)
        connection.send((True, ""))
        while True:
            what, arguments = connection.recv()
            connection.send((do[what](model, *arguments), ""))
    except (EOFError, ConnectionError):
        return
    except Exception as error:  # noqa: BLE001 - whatever PyTorch raises is the row's reason
        connection.send((None, f"{type(error).__name__}: {error}"))


def _open(task: Task) -> PyTorch:
    import torch
    import transformers

    from mexma_benchmarks.adapters.pytorch import open_model

    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.backends.cuda.matmul.allow_tf32 = False
    return open_model(task)


def _vectors(model: PyTorch, work: Work) -> Vectors:
    found = _embed(model, _batches(work))
    vectors = np.empty_like(found)
    vectors[np.concatenate(work.batches)] = found
    return vectors


def _times_ms(model: PyTorch, work: Work, n_calls: int) -> list[float]:
    batches, times_ms = _batches(work), []
    for _ in range(n_calls):
        start_s = time.perf_counter()
        _embed(model, batches)
        times_ms.append((time.perf_counter() - start_s) * 1e3)
    return times_ms


def _batches(work: Work) -> list[list[Any]]:
    return [[work.ragged[int(row)] for row in rows] for rows in work.batches]


def _embed(model: PyTorch, batches: list[list[Any]]) -> Vectors:
    """As the model's own `encode` does it for texts: all batches are queued, then the vectors are fetched at once."""
    return model._fetch([model._embed(batch) for batch in batches])
