"""Subjects that are in memory at once and take turns; one that fails drops out, and the others go on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from mexma_benchmarks.adapters.protocol import Task
from mexma_benchmarks.result.checks import without_folders
from mexma_benchmarks.result.result import ModelResult, Timing
from mexma_benchmarks.run.process import LIMIT_S, NotOfferedError, SubjectError, SubjectProcess
from mexma_benchmarks.run.subjects import Subject
from mexma_benchmarks.run.timing import take_turns
from mexma_benchmarks.run.workload import Job

Answer = dict[str, Any]


class Heat:
    """Running subjects of one model; leaving a `with` ends them."""

    def __init__(self, number: int, model: ModelResult, *, limit_s: float = LIMIT_S) -> None:
        """No subject may take longer than `limit_s` to start, or for one answer."""
        self.number = number
        self._model, self._limit_s = model, limit_s
        self._running: dict[str, tuple[Subject, SubjectProcess]] = {}

    def start(self, tasks: Sequence[tuple[Subject, Task]], *, n_at_once: int = 1) -> None:
        """Start subjects, so many side by side, and keep what they say of themselves."""
        for first in range(0, len(tasks), n_at_once):
            started = tasks[first : first + n_at_once]
            for subject, task in started:
                where = {"python": subject.python, "runtime": subject.runtime}
                process = SubjectProcess(subject.adapter, task, **where, limit_s=self._limit_s)
                self._running[subject.name] = subject, process
            for subject, _ in started:
                self._wait(subject.name)

    def _wait(self, name: str) -> None:
        """A failure becomes the row's reason."""
        result = self._model.subject(name)
        try:
            ready = self._running[name][1].ready
        except SubjectError as error:
            self._fail(name, error)
            return
        result.versions, result.provider, result.batching = ready.versions, ready.provider, ready.batching

    def _fail(self, name: str, error: SubjectError) -> None:
        result = self._model.subject(name)
        result.status = "unavailable" if isinstance(error, NotOfferedError) else "failed"
        result.reason = without_folders(str(error))
        self._running.pop(name)[1].close()

    def is_running(self, name: str) -> bool:
        """Whether it was started and has not failed."""
        return name in self._running

    def names(self, measured: str) -> list[str]:
        """The running subjects of which `measured` is measured."""
        return [name for name, (subject, _) in self._running.items() if measured in subject.measured]

    def pid(self, name: str) -> int:
        """The process of a running subject."""
        return self._running[name][1].pid

    def ask(self, name: str, request: Mapping[str, Any]) -> Answer | None:
        """A subject's answer; None once it has failed. NotOfferedError where it has no such interface."""
        if name not in self._running:
            return None
        process = self._running[name][1]
        try:
            return process.ask(request)
        except NotOfferedError:
            raise
        except SubjectError as error:
            self._fail(name, error)
            return None

    def time(self, job: Job, n_rounds: Callable[[float], int], report: Callable[[int, int], None]) -> None:
        """Let all subjects do `job` in turns: once to warm up, then as often as `n_rounds` says of the first round's s.

        Samples are kept as they come, so that an interrupted workload has its whole rounds.
        """
        names = self.names(job.workload.kind)
        if not names:
            return
        timing = Timing(workload=job.workload, heat=self.number)
        self._model.timings.append(timing)
        warm = []
        for name in names:
            try:
                if self.ask(name, job.request) is not None:
                    warm.append(name)
            except NotOfferedError as error:
                timing.not_offered[name] = without_folders(str(error))
        n = 1
        turns = take_turns({name: functools.partial(self.ask, name, job.request) for name in warm})
        for done, answers in enumerate(turns, start=1):
            measured = {name: answer for name, answer in answers.items() if answer is not None}
            for name, answer in measured.items():
                timing.samples_ms.setdefault(name, []).append(answer["ms"])
                if answer["calls_ms"]:
                    timing.calls_ms.setdefault(name, []).append(answer["calls_ms"])
                if answer["stages_ms"]:
                    timing.stages_ms.setdefault(name, []).append(answer["stages_ms"])
            if done == 1:
                n = n_rounds(sum(sum(answer["calls_ms"]) or answer["ms"] for answer in measured.values()) / 1e3)
            report(done, n)
            if done >= n:
                return

    def close(self) -> None:
        """End all subjects."""
        for _, process in self._running.values():
            process.close()
        self._running.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
