"""What the commands show a person: progress bars and notes on stderr, so that stdout stays a script's."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mexma_runtime.errors import FileError, file_errors

N_FINISHED = 4
"""Bars of what is done that stay on the screen."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def note(message: str) -> None:
    """One line (or more) for a person, on stderr, taken as it is."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(message, markup=False, highlight=False, emoji=False)


def print_json(value: Any) -> None:
    """One JSON document on stdout, for a script."""
    require_stdout()
    with file_errors("standard output", "cannot be written"):
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def require_stdout() -> None:
    """FileError where standard output is closed: to be told before long work, and not behind it."""
    if sys.stdout is None:
        raise FileError("standard output", "cannot be written", OSError(errno.EBADF, "it is closed"))


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A bar for each thing that is being done, on stderr; nothing at all where that is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
                finished = [task.id for task in bars.tasks if task.visible and task.finished]
                for task_id in finished[:-N_FINISHED]:
                    bars.update(task_id, visible=False)
            bars.update(tasks[what], completed=done, total=total)

        yield report
