"""The command `mexma`: info, doctor, embed, and the commands that other packages add."""

from __future__ import annotations

import atexit
import importlib.metadata
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from mexma_runtime.cli.embed import embed_command
from mexma_runtime.cli.options import JsonOption
from mexma_runtime.errors import DeviceMemoryError, FileError, MexmaError, UsageError, file_errors
from mexma_runtime.terminal import note, progress_bars

COMMANDS = "mexma.commands"
"""The entry points that add commands: functions that take the typer app."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
UNEXPECTED_EXIT_CODE = 70
SHOW_TRACEBACK = "MEXMA_TRACEBACK"


def main() -> None:
    """Run the command line; a MexmaError becomes one line on stderr and its own exit code."""
    _open_closed_streams()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(number, _stop)
    try:
        try:
            build_app()()
        except SystemExit:
            _flush_stdout()
            raise
    except MexmaError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:  # whoever read the output has left
        sys.exit(MexmaError.exit_code)
    except Exception as error:
        if os.environ.get(SHOW_TRACEBACK):
            raise
        _fail_by(error)


def build_app() -> typer.Typer:
    """The commands of this package and of the others that are installed."""
    app = typer.Typer(
        name="mexma",
        help="Export sentence encoders, and embed text with them.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    app.command("embed")(embed_command)
    app.command("info")(info_command)
    app.command("doctor")(doctor_command)
    for entry in sorted(importlib.metadata.entry_points(group=COMMANDS), key=lambda entry: entry.name):
        try:
            entry.load()(app)
        except ImportError as error:
            note(f"mexma {entry.name} is not available: {error}")
    return app


def info_command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.", readable=False)],
    verify: Annotated[bool, typer.Option("--verify", help="Check the hashes of the weights too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a bundle holds, after checking its files."""
    from mexma_runtime.bundle.bundle import Bundle
    from mexma_runtime.cli.tables import show_bundle

    with progress_bars() as report:
        opened = Bundle.open(bundle, verify=verify, progress=lambda done, total: report("checking", done, total))
    show_bundle(opened, is_verified=verify, as_json=as_json)


def doctor_command(
    bundle: Annotated[
        Path | None,
        typer.Option(help="A bundle: run its engines for GPUs, and show their attention kernels.", readable=False),
    ] = None,
    device: Annotated[str, typer.Option(help="The GPU to look at with --bundle: cuda, cuda:1.")] = "cuda",
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Measure --bundle on this GPU, and keep in its folder what is best here."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show versions, processor, threads, GPUs, and which backends work here."""
    from mexma_runtime import backends
    from mexma_runtime.bundle.bundle import Bundle
    from mexma_runtime.cli import tables
    from mexma_runtime.cli.doctor import diagnose

    if tune and bundle is None:
        raise UsageError("--tune measures the engine of a bundle: name it with --bundle")
    opened = Bundle.open(bundle) if bundle else None
    if opened and tune:
        with progress_bars() as report:
            tuned = backends.tune(
                opened, device, progress=lambda what, done, total: report(f"measuring {what}", done, total)
            )
        tables.show_tuning(tuned, as_json=as_json)
        return
    tables.show_diagnosis(diagnose(opened, device), as_json=as_json)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        try:
            typer.echo(f"mexma-runtime {importlib.metadata.version('mexma-runtime')}")
        except importlib.metadata.PackageNotFoundError:
            typer.echo("mexma-runtime, not installed but run from its source")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Export sentence encoders, and embed text with them."""


def _stop(number: int, frame: FrameType | None) -> None:
    # Unlike the signals' own effects, this lets `with` blocks clean up, which no second signal disturbs, and the exit
    # code is a shell's.
    _take_signals(lambda *_: None)  # with SIG_IGN, Python tells of one that has come already
    atexit.register(_take_signals, signal.SIG_IGN)  # when it ends it gives up all handlers but that one
    sys.exit(128 + number)


def _take_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)


def _open_closed_streams() -> None:
    """Else the next file that is opened takes the number of a closed stream, and gets what libraries print there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - to the end of the process


def _flush_stdout() -> None:
    if sys.stdout is None:
        return
    try:
        with file_errors("standard output", "cannot be written"):
            sys.stdout.flush()
    except (FileError, BrokenPipeError):
        # Python would try once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise


def _fail_by(error: Exception) -> NoReturn:
    """Tell what nobody has put into words."""
    if isinstance(error, OSError) and error.errno is not None:  # None: of a library
        told = FileError(error.filename or "a file or standard output", "", error)
        _fail(str(told), told.exit_code)
    if isinstance(error, MemoryError):
        _fail(f"out of memory{f': {error}' if str(error) else ''}", DeviceMemoryError.exit_code)
    _fail(f"{type(error).__name__}: {error} ({SHOW_TRACEBACK}=1 shows where)", UNEXPECTED_EXIT_CODE)


def _fail(message: str, exit_code: int) -> NoReturn:
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
    with suppress(FileError, BrokenPipeError):
        _flush_stdout()
    sys.exit(exit_code)
