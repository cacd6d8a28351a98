"""Environments of peers: made from a file of requirements, and complete or not there at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mexma_runtime.errors import MexmaError
from mexma_runtime.terminal import Progress

MARKER = "complete"
N_LAST_LINES = 8


class PeerEnvironmentError(MexmaError):
    """An environment could not be made."""

    exit_code = 9


@dataclass(frozen=True, kw_only=True)
class PeerEnvironment:
    """A virtual environment, there or still to be made."""

    requirements: Path
    """What it has, as pip reads it."""
    folder: Path

    @property
    def python(self) -> Path | None:
        """Its interpreter; None if it was never made, not to its end, or of other requirements than these."""
        python, marker = self.folder / "bin" / "python", self.folder / MARKER
        is_complete = python.exists() and marker.is_file() and marker.read_text(encoding="ascii") == self._digest()
        return python if is_complete else None

    @property
    def log(self) -> Path:
        """What venv and pip said, beside the folder."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def make(self) -> None:
        """Make it where it is not complete, from nothing.

        Raises:
            PeerEnvironmentError: venv or pip failed, or another process is making it.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a", encoding="utf-8") as log:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PeerEnvironmentError(f"{self.folder}: another process is making it: wait for it") from None
            if self.python is not None:
                return
            log.truncate(0)
            shutil.rmtree(self.folder, ignore_errors=True)
            python = str(self.folder / "bin" / "python")
            commands = (
                [sys.executable, "-m", "venv", str(self.folder)],
                [python, "-m", "pip", "install", "--disable-pip-version-check", "-r", str(self.requirements)],
            )
            variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            for command in commands:
                if status := subprocess.run(command, stdout=log, stderr=log, env=variables, check=False).returncode:
                    raise PeerEnvironmentError(self._failure(command[2], status))
            (self.folder / MARKER).write_text(self._digest(), encoding="ascii")

    def _digest(self) -> str:
        return hashlib.sha256(self.requirements.read_bytes()).hexdigest()

    def _failure(self, what: str, status: int) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-N_LAST_LINES:]
        said = "".join(f"\n    {line}" for line in lines)
        return f"{self.folder}: {what} ended with status {status}; all that it said is in {self.log}, at last:{said}"


def peer_environment(name: str, folder: Path) -> PeerEnvironment:
    """The environment `name`, below `folder`: its requirements are `peers/NAME.txt` of this package."""
    return PeerEnvironment(requirements=Path(__file__).with_name(f"{name}.txt"), folder=folder / name)


def make_environments(environments: Iterable[PeerEnvironment], progress: Progress) -> None:
    """Make all of them that can be made; does nothing for those that are complete.

    Raises:
        PeerEnvironmentError: some could not; the message says of each why.
    """
    failures: list[str] = []
    todo = list(environments)
    for environment in todo:
        progress(f"installing {environment.folder.name}", 0, 1)
        try:
            environment.make()
        except PeerEnvironmentError as error:
            failures.append(str(error))
        progress(f"installing {environment.folder.name}", 1, 1)
    if failures:
        raise PeerEnvironmentError(
            f"{len(failures)} of {len(todo)} environments could not be made\n" + "\n".join(failures)
        )
