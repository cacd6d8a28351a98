"""The command `mexma`: info, doctor, embed, and the commands that other packages add."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
import time
import warnings
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, BinaryIO, NoReturn

import typer

from mexma_runtime.bundle.whole_files import STDOUT, is_stdout
from mexma_runtime.errors import FileError, MexmaError, TruncationWarning, UsageError, file_errors
from mexma_runtime.terminal import note, print_json, progress_bars

COMMANDS = "mexma.commands"
"""The entry points that add commands: functions that take the typer app."""
UNEXPECTED_EXIT_CODE = 70
SHOW_TRACEBACK = "MEXMA_TRACEBACK"
N_LISTED = 20
"""Lines that were skipped, in a note."""
COLUMN_SUFFIXES = (".tsv", ".csv", ".jsonl")
"""Of files whose lines are more than a sentence."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def main() -> None:
    """Run the command line; a MexmaError becomes one line on stderr and its own exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
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
    except OSError as error:
        if os.environ.get(SHOW_TRACEBACK):
            raise
        if error.errno is None:  # of a library
            _fail_unexpectedly(error)
        told = FileError(error.filename or "a file or standard output", "", error)
        _fail(str(told), told.exit_code)
    except Exception as error:
        if os.environ.get(SHOW_TRACEBACK):
            raise
        _fail_unexpectedly(error)


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
            engine, found, path = backends.tune(
                opened, device, progress=lambda done, total: report("measuring", done, total)
            )
        tables.show_tuning(engine, found, path, as_json=as_json)
        return
    tables.show_diagnosis(diagnose(opened, device), as_json=as_json)


def embed_command(
    file: Annotated[str, typer.Argument(help="Text in UTF-8, one sentence a line; - reads stdin.")],
    bundle: Annotated[Path, typer.Option(help="Folder of the bundle.", readable=False)],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The .npy file to write: float32, one row a line; - is stdout.", readable=False
        ),
    ],
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, int8 or fp8; default: the only one, or fp32; fp16 on a GPU.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Of int8: fast, precise or your own; default: precise on OpenVINO, fast on onnxruntime."),
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="cpu (default), or a GPU: cuda, cuda:1; given several times, they share.")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="onnxruntime, openvino or tensorrt; default: OpenVINO for int8, where it is there, else onnxruntime."
        ),
    ] = None,
    attention: Annotated[
        str | None, typer.Option(help="Of a GPU: efficient (default), or flash, which is faster for long texts.")
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option("--normalize/--no-normalize", help="Vectors of length 1, or as pooled; default: the model's way."),
    ] = None,
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Leave out lines that are not UTF-8, and list their numbers.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Embed each line of a file, in bounded memory; OUT appears when it is complete."""
    from mexma_runtime.cli.npy_file import npy_writer
    from mexma_runtime.encoder import Encoder
    from mexma_runtime.text.lines import count_lines, read_lines

    if as_json and is_stdout(output):
        raise UsageError("--json and the vectors would both be on stdout: choose a file for the vectors by -o")
    _note_columns(file)
    skipped: list[int] | None = [] if skip_bad_lines else None

    start_s = time.perf_counter()
    n_sentences = 0
    with ExitStack() as stack:
        lines = stack.enter_context(_open(file))
        encoder = stack.enter_context(
            Encoder.load(
                bundle,
                precision=precision,
                recipe=recipe,
                device=device or "cpu",
                backend=backend,
                attention=attention,
            )
        )
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        append = stack.enter_context(npy_writer(output, dim=encoder.info.dim))
        report = stack.enter_context(progress_bars())
        # Only a person waits for a bar, and only a file can be read twice.
        n_lines = count_lines(Path(file)) if sys.stderr.isatty() and Path(file).is_file() else 0
        vectors = encoder.encode_iter(
            read_lines(
                lines,
                name="stdin" if file == "-" else file,
                skipped=skipped,
                way_on=", or leave such lines out by --skip-bad-lines",
            ),
            normalize_embeddings=normalize,
        )
        for vector in stack.enter_context(closing(vectors)):
            append(vector)
            n_sentences += 1
            if n_lines:
                report("embedding", n_sentences + len(skipped or ()), n_lines)
    seconds = time.perf_counter() - start_s
    for warning in caught:
        note(f"warning: {warning.message}")
    _note_skipped(skipped or [])
    info = encoder.info
    if as_json:
        print_json(
            {
                "output": str(output),
                "n_sentences": n_sentences,
                "dim": info.dim,
                "n_truncated": sum(w.message.n_truncated for w in caught if isinstance(w.message, TruncationWarning)),
                "skipped_lines": skipped or [],
                "seconds": round(seconds, 3),
                "engine": info.engine,
                "backend": info.backend,
                "space": info.space,
            }
        )
    else:
        rate = n_sentences / seconds
        where = "stdout" if output == STDOUT else output
        note(
            f"wrote {n_sentences} vectors of {info.dim} numbers to {where}: engine {info.engine} on {info.backend}, "
            f"{seconds:.1f} s, {rate:.1f} sentences/s with loading"
        )


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


def _open(file: str) -> AbstractContextManager[BinaryIO]:
    if file == "-":
        if sys.stdin is None:
            raise UsageError("-: standard input is closed: name a file")
        return nullcontext(sys.stdin.buffer)
    with file_errors(file, "cannot be read"):
        return Path(file).open("rb")


def _note_columns(file: str) -> None:
    if Path(file).suffix.lower() in COLUMN_SUFFIXES:
        note(
            f"note: {file}: each line is embedded whole, columns and all: to embed one column, take it out (cut, jq) "
            "and give it by a pipe, with - as the file"
        )


def _note_skipped(numbers: list[int]) -> None:
    if numbers:
        listed = ", ".join(map(str, numbers[:N_LISTED])) + (", ... (--json lists all)" if numbers[N_LISTED:] else "")
        note(f"warning: lines that are not UTF-8 were left out and have no row: {len(numbers)}, these: {listed}")


def _stop(number: int, frame: FrameType | None) -> None:
    # Unlike the signals' own effects, this lets `with` blocks clean up, and the exit code is a shell's.
    sys.exit(128 + number)


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


def _fail_unexpectedly(error: Exception) -> NoReturn:
    _fail(f"{type(error).__name__}: {error} ({SHOW_TRACEBACK}=1 shows where)", UNEXPECTED_EXIT_CODE)


def _fail(message: str, exit_code: int) -> NoReturn:
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
    with suppress(FileError, BrokenPipeError):
        _flush_stdout()
    sys.exit(exit_code)
