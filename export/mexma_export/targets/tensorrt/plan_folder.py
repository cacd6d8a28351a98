"""The folder that plans are published in: held by one build at a time, a log and a description beside each plan."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from mexma_runtime.bundle.bundle import lock_folder
from mexma_runtime.bundle.plans import LAYERS, Plan
from mexma_runtime.bundle.whole_files import require_writable, write_whole
from mexma_runtime.errors import file_errors

TIMING_CACHE = "timing.cache"


class PlanFolder:
    """Made where it is not there. Links in it give way to files: what they point to belongs to others."""

    def __init__(self, path: Path) -> None:
        """BundleError where another build is writing there."""
        self.path = path
        with file_errors(path, "cannot be made a folder"):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path, os.O_RDONLY)
        try:
            lock_folder(self._lock, path)
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)

    @contextmanager
    def log(self, engine: str) -> Iterator[Callable[[str, str], None]]:
        """A new log of `engine`: called with a severity and a text. Told at once: a place that cannot be written to."""
        require_writable(self._description(engine), replaces_link=True)
        lines = self._open_log(self.log_of(engine))

        def say(severity: str, text: str) -> None:
            with suppress(OSError):  # a full disk: it must not pass through the library, and the plan will tell
                lines.write(f"{severity}: {text}\n")

        try:
            yield say
        finally:
            with suppress(OSError):
                lines.close()

    def log_of(self, engine: str) -> Path:
        """Where it lies."""
        return self.path / f"{engine}.log"

    def keep_layers(self, engine: str, layers: str) -> None:
        """Write the inspector's output."""
        write_whole(self.path / f"{engine}{LAYERS}", layers.encode(), replaces_link=True)

    def publish(self, plan: Plan, data: memoryview | bytes) -> Path:
        """Put a complete plan there; older ones of the same engine go when their description has."""
        path = self.path / plan.file
        write_whole(path, data, replaces_link=True)
        write_whole(self._description(plan.engine), plan.to_json().encode(), replaces_link=True)
        ours = re.compile(rf"(\.?){re.escape(plan.engine)}(\.[0-9a-f]+)?\.plan(\.[0-9a-f]+\.part)?")
        for older in self.path.iterdir():
            if older != path and ours.fullmatch(older.name):
                older.unlink()
        return path

    def _open_log(self, path: Path) -> TextIO:
        with file_errors(path, "cannot be written"):
            path.unlink(missing_ok=True)
            return path.open("w", encoding="utf-8")

    def _description(self, engine: str) -> Path:
        return self.path / f"{engine}.json"
