"""The command `mexma embed`."""

from __future__ import annotations

import functools
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from mexma_runtime.bundle.whole_files import STDOUT, is_stdout
from mexma_runtime.cli.options import JsonOption
from mexma_runtime.errors import InputError, TruncationWarning, UsageError, file_errors
from mexma_runtime.terminal import note, print_json, progress_bars, require_stdout

if TYPE_CHECKING:
    from mexma_runtime.encoder import Encoder

WINDOW_TEXTS = 4096
"""Of a file that is looked at before any of it is embedded."""
WAY_ON = ", or leave such lines out by --skip-bad-lines"
N_LISTED = 20
"""Lines that were skipped, in a note."""
COLUMN_SUFFIXES = (".tsv", ".csv", ".jsonl")
"""Of files whose lines are more than a sentence."""


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
            help="onnxruntime, openvino, tensorrt or tensorrt-rtx; default: OpenVINO for int8, where it is there, "
            "else onnxruntime."
        ),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(help="Of a GPU: efficient (default), flash (faster for long texts), or auto (by the batch)."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads to compute and to tokenize with; default: OMP_NUM_THREADS, or all cores."),
    ] = None,
    spinning: Annotated[
        bool | None,
        typer.Option(
            "--spinning/--no-spinning", help="Whether idle threads wait busily; default: unless a quota holds."
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Most sentences in a batch; default: as many as the backend does best.")
    ] = None,
    prompt_name: Annotated[
        str | None, typer.Option(help="Put the prompt of this name before each sentence: query, document, ...")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Put these words before each sentence.")] = None,
    truncate: Annotated[
        bool,
        typer.Option("--truncate/--no-truncate", help="Cut sentences over the model's limit, or refuse them."),
    ] = True,
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
    from mexma_runtime.text.lines import read_lines

    if as_json and is_stdout(output):
        raise UsageError("--json and the vectors would both be on stdout: choose a file for the vectors by -o")
    if as_json:
        require_stdout()
    _note_columns(file)
    if threads is not None:
        os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # of the tokenizer, which has not started yet
    skipped: list[int] | None = [] if skip_bad_lines else None

    name = "stdin" if file == "-" else file
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
                n_threads=threads,
                spinning=spinning,
            )
        )
        _refuse_to_overwrite(encoder.info.bundle, output)
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        append = stack.enter_context(npy_writer(output, dim=encoder.info.dim))
        report = stack.enter_context(progress_bars())
        texts = read_lines(lines, name=name, skipped=skipped, way_on=WAY_ON)
        n_texts = 0
        if Path(file).is_file():  # and can be read twice: what is wrong with it is told before any of it is embedded
            refuse_long = functools.partial(encoder.tokenize, prompt_name=prompt_name, prompt=prompt, truncate=False)
            n_texts = _check_lines(file, [] if skip_bad_lines else None, None if truncate else refuse_long)
        vectors = encoder.encode_iter(
            texts,
            prompt_name=prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            normalize_embeddings=normalize,
            as_pooled=normalize is False,
            truncate=truncate,
        )
        stack.enter_context(closing(vectors))
        stack.enter_context(_lines_named(name, skipped))
        for vector in vectors:
            append(vector)
            n_sentences += 1
            if n_texts:
                report("embedding", n_sentences, n_texts)
        if n_sentences < n_texts:
            raise InputError(f"{file}: of {n_texts} lines {n_sentences} were left: it was changed while it was read")
    seconds = time.perf_counter() - start_s
    for warning in caught:
        note(f"warning: {warning.message}")
    _note_skipped(skipped or [])
    if prompt_name is None and prompt is None:
        _note_prompts(encoder)
    info = encoder.info
    if attention is not None:
        note(f"attention: {info.attention}")
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


def _open(file: str) -> AbstractContextManager[BinaryIO]:
    if file == "-":
        if sys.stdin is None:
            raise UsageError("-: standard input is closed: name a file")
        with suppress(OSError, ValueError):  # some parents leave it so that a read gives what is there
            os.set_blocking(sys.stdin.fileno(), True)
        return nullcontext(sys.stdin.buffer)
    with file_errors(file, "cannot be read"):
        return Path(file).open("rb")


def _check_lines(file: str, skipped: list[int] | None, refuse: Callable[[list[str]], object] | None) -> int:
    """The number of texts in a file, which is read whole; InputError for the first that `refuse` does not take."""
    from mexma_runtime.text.lines import read_lines

    n_texts = 0
    with _open(file) as lines:
        texts = read_lines(lines, name=file, skipped=skipped, way_on=WAY_ON)
        while window := list(islice(texts, WINDOW_TEXTS)):
            if refuse:
                with _lines_named(file, skipped, n_texts):
                    refuse(window)
            n_texts += len(window)
    return n_texts


@contextmanager
def _lines_named(name: str, skipped: list[int] | None, first_index: int = 0) -> Iterator[None]:
    """An InputError of the block, which counts texts from `first_index`, names the line; others were `skipped`."""
    try:
        yield
    except InputError as error:
        if error.index is None:
            raise
        line = first_index + error.index + 1
        for number in skipped or ():
            line += number <= line
        reason = str(error).removeprefix(f"input {error.index}: ")
        raise InputError(f"{name}, line {line}: {reason}") from None


def _refuse_to_overwrite(bundle: str, output: Path) -> None:
    there = Path(os.path.realpath(output))
    if there.exists() and any(path.exists() and path.samefile(there) for path in Path(bundle).iterdir()):
        raise UsageError(f"{output}: a file of the bundle itself: choose another output")


def _note_columns(file: str) -> None:
    if Path(file).suffix.lower() in COLUMN_SUFFIXES:
        note(
            f"note: {file}: each line is embedded whole, columns and all: to embed one column, take it out (cut, jq) "
            "and give it by a pipe, with - as the file"
        )


def _note_prompts(encoder: Encoder) -> None:
    """A model that was trained with prompts gives other vectors without."""
    named = [name for name, text in encoder.prompts.items() if text]
    if named and encoder.default_prompt_name is None:
        note(f"note: this model has prompts, and none was asked for: --prompt-name {' or '.join(named)}")


def _note_skipped(numbers: list[int]) -> None:
    if numbers:
        listed = ", ".join(map(str, numbers[:N_LISTED])) + (", ... (--json lists all)" if numbers[N_LISTED:] else "")
        note(f"warning: lines that are not UTF-8 were left out and have no row: {len(numbers)}, these: {listed}")
