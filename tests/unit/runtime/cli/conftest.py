"""The command `mexma`, run in the tests' own process."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mexma_runtime.cli.commands import SIGNALS, main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs `mexma` in this process: exit code, stdout, stderr."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def run_main(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mexma", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return (code if isinstance(code, int) else 0), *capfd.readouterr()

    yield run_main
    for number, handler in handlers.items():
        signal.signal(number, handler)
