"""A subject in its own process: started, asked, frozen between its turns, and ended."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from mexma_benchmarks.adapters.protocol import Task
from mexma_runtime.errors import MexmaError

LIMIT_S = 3600.0
"""No answer takes so long but one that never comes."""
LAST_BYTES = 2000

# Peers' environments do not have this project: their mexma_benchmarks is this folder and nothing else.
_BOOTSTRAP = """
import runpy, sys, types
package = types.ModuleType("mexma_benchmarks")
package.__path__ = [sys.argv.pop(1)]
sys.modules["mexma_benchmarks"] = package
runpy.run_module("mexma_benchmarks.adapters." + sys.argv.pop(1), run_name="__main__")
"""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


class SubjectError(MexmaError):
    """A subject could not be started, or could not do what it was asked; the message is its row's reason."""


class NotOfferedError(SubjectError):
    """The subject has no such interface."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What a subject says of itself once it has embedded its first text."""

    start_ms: float
    """From before its process was made until it held the vector."""
    peak_rss_bytes: int | None
    """None: another process computes."""
    versions: dict[str, str]
    provider: str
    batching: str


class SubjectProcess:
    """One adapter at work on one task. It is stopped (SIGSTOP) but for its turns, so that none slows another's."""

    def __init__(
        self,
        adapter: str,
        task: Task,
        *,
        python: Path | None = None,
        runtime: Path | None = None,
        limit_s: float = LIMIT_S,
    ) -> None:
        """Start it; `ready` waits for it."""
        self._start_s = time.monotonic()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        self._process = _start(adapter, "serve", task, python, self._errors, runtime)
        self._limit_s, self._buffer = limit_s, b""

    @cached_property
    def ready(self) -> Ready:
        """What it says once it has embedded the task's first text; SubjectError says why it could not, and ends it."""
        try:
            ready = self._answer()["ready"]
        except BaseException:
            self.close()
            raise
        self._stop()
        return Ready(start_ms=(ready.pop("reached_s") - self._start_s) * 1e3, **ready)

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run while the `with` lasts."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._stop()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request of the protocol and wait for its answer; SubjectError or NotOfferedError for none."""
        _ = self.ready
        with self.awake():
            assert self._process.stdin is not None
            with suppress(BrokenPipeError):  # what it died of is read below
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
            return self._answer()

    def close(self) -> None:
        """End it, whatever it is doing."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        with suppress(BrokenPipeError):
            self._process.__exit__(None, None, None)
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        stream, until_s = self._process.stdout.fileno(), time.monotonic() + self._limit_s
        while b"\n" not in self._buffer:
            if not select.select([stream], [], [], max(0.0, until_s - time.monotonic()))[0]:
                raise SubjectError(f"no answer within {self._limit_s:.0f} s")
            if not (read := os.read(stream, 1 << 20)):
                raise SubjectError(_why(self._process, self._errors))
            self._buffer += read
        line, self._buffer = self._buffer.split(b"\n", 1)
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise SubjectError(f"it wrote what is no answer: {line[:80]!r}") from None
        if reason := answer.get("not_offered"):
            raise NotOfferedError(reason)
        if reason := answer.get("error"):
            raise SubjectError(reason)
        return answer

    def _stop(self) -> None:
        self._signal(signal.SIGSTOP)
        with suppress(ChildProcessError):  # it has ended and was waited for
            # A signal takes its time; an exit is left for `wait`.
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def prepare(adapter: str, task: Task, *, python: Path | None = None, limit_s: float = LIMIT_S) -> None:
    """Let an adapter convert the checkpoint into the task's folder; SubjectError says why it could not."""
    with tempfile.TemporaryFile() as errors:
        process = _start(adapter, "prepare", task, python, errors)
        try:
            lines, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise SubjectError(f"not converted within {limit_s:.0f} s") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        answer = json.loads(lines.splitlines()[-1]) if lines else {"error": _why(process, errors)}
    if reason := answer.get("error"):
        raise SubjectError(reason)


def _start(
    adapter: str, verb: str, task: Task, python: Path | None, errors: IO[bytes], runtime: Path | None = None
) -> subprocess.Popen[bytes]:
    variables = os.environ | {"HF_HUB_OFFLINE": "1"} | dict.fromkeys(_THREADS, str(task.n_threads))
    if python is not None:
        variables.pop("PYTHONPATH", None)
    if runtime is not None:
        variables["PYTHONPATH"] = str(runtime.absolute())
    # Not through a link of the environment's: it would be that of the Python below.
    interpreter = [str(python.absolute()) if python else sys.executable, "-c", _BOOTSTRAP]
    return subprocess.Popen(
        [*interpreter, str(Path(__file__).parent.parent), adapter, verb, json.dumps(asdict(task))],
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,
    )


def _why(process: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    """Of what a process died: its exit status and the last line that it wrote."""
    status = process.wait()
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - LAST_BYTES))
    lines = errors.read().decode(errors="replace").strip().splitlines()
    died = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return f"its process ended ({died}){': ' + lines[-1] if lines else ''}"
