"""Subjects that are in memory at once and take turns; one that fails drops out, and the others go on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from mexma_benchmarks.adapters.protocol import Task
from mexma_benchmarks.result.result import ModelResult, Timing
from mexma_benchmarks.run.process import NotOfferedError, SubjectError, SubjectProcess
from mexma_benchmarks.run.subjects import Subject
from mexma_benchmarks.run.timing import take_turns
from mexma_benchmarks.run.workload import Job

Answer = dict[str, Any]


class Heat:
    """Running subjects of one model; leaving a `with` ends them."""

    def __init__(self, number: int, model: ModelResult) -> None:
        self.number = number
        self._model = model
        self._running: dict[str, tuple[Subject, SubjectProcess]] = {}

    def start(self, subject: Subject, task: Task) -> None:
        """Start a subject and keep what it says of itself; a failure becomes its row's reason."""
        result = self._model.subject(subject.name)
        try:
            process = SubjectProcess(subject.adapter, task, python=subject.python)
        except SubjectError as error:
            result.status, result.reason = "failed", str(error)
            return
        self._running[subject.name] = subject, process
        ready = process.ready
        result.versions, result.provider, result.batching = ready.versions, ready.provider, ready.batching

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
            result = self._model.subject(name)
            result.status, result.reason = "failed", str(error)
            del self._running[name]
            process.close()
            return None

    def time(self, job: Job, n_rounds: Callable[[float], int], report: Callable[[int, int], None]) -> None:
        """Let all subjects do `job` in turns: once to warm up, then as often as `n_rounds` says of the first round's s.

        Samples are kept as they come, so that an interrupted workload has its whole rounds.
        """
        timing = Timing(workload=job.workload, heat=self.number)
        self._model.timings.append(timing)
        warm = []
        for name in self.names(job.workload.kind):
            try:
                if self.ask(name, job.request) is not None:
                    warm.append(name)
            except NotOfferedError as error:
                timing.not_offered[name] = str(error)
        n = 1
        turns = take_turns({name: functools.partial(self.ask, name, job.request) for name in warm})
        for done, answers in enumerate(turns, start=1):
            measured = {name: answer for name, answer in answers.items() if answer is not None}
            for name, answer in measured.items():
                timing.samples_ms.setdefault(name, []).append(answer["ms"])
                if answer["stages_ms"]:
                    timing.stages_ms.setdefault(name, []).append(answer["stages_ms"])
            if done == 1:
                n = n_rounds(sum(answer["ms"] for answer in measured.values()) / 1e3)
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
