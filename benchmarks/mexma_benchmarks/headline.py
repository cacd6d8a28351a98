"""The numbers of the README: a checkpoint's fp32 engines against PyTorch, in one interleaved run.

`python -m mexma_benchmarks.headline --out results.json` writes every raw sample and prints Markdown tables.
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mexma_benchmarks.environment import detect_environment
from mexma_benchmarks.measurement import Plan, Subject, measure
from mexma_benchmarks.models import minilm_source
from mexma_benchmarks.report import markdown
from mexma_benchmarks.result import Result
from mexma_export.corpus import Corpus, read_corpus
from mexma_export.sources import resolve_source
from mexma_runtime.errors import MexmaError, UsageError
from mexma_runtime.hardware import detect_hardware
from mexma_runtime.terminal import Progress, note, progress_bars
from mexma_runtime.types import Pooling

FOLDER = Path("engines/headline")
INTERRUPTED = 130
MINILM = "minilm"
DEFAULT = ((MINILM, None), (MINILM, Pooling.CLS), ("standin:mexma", None))


def _subject(source: str, pooling: Pooling | None, bundle: Path | None, report: Progress) -> Subject:
    bar = functools.partial(report, f"making {source}")
    found = minilm_source() if source == MINILM else resolve_source(source, progress=bar)
    name = found.model_id
    if pooling:
        name += f" pooled {pooling}"
    return Subject(name=name, source=found, pooling=pooling, bundle=bundle or FOLDER / re.sub(r"[^\w.]+", "-", name))


def _thinned(corpus: Corpus, n_texts: int) -> Corpus:
    """At most `n_texts` of its sentences, evenly spread."""
    step = max(1, len(corpus.texts) // n_texts)
    return replace(corpus, texts=corpus.texts[::step][:n_texts])


def main(
    source: Annotated[
        str | None,
        typer.Option(
            help="minilm, standin:NAME, a folder or a hub id. Default: minilm (also pooled cls) and standin:mexma."
        ),
    ] = None,
    pooling: Annotated[Pooling | None, typer.Option(help="Instead of what the checkpoint's files say.")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help=f"The source's bundle. Default: one in {FOLDER}, exported where it is missing.")
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(help="Real text, one sentence a line. Default: texts of a stated length distribution."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where to write every sample, as JSON.")] = FOLDER / "results.json",
    threads: Annotated[int | None, typer.Option(min=1, help="Of PyTorch and of the engines each.")] = None,
    repeats: Annotated[int, typer.Option(min=2, help="Rounds of a fixed shape; the others follow from it.")] = 10,
    quick: Annotated[bool, typer.Option("--quick", help="Few rounds and texts: a look, not a result.")] = False,
) -> None:
    """Measure fp32 engines against PyTorch: about eight minutes on two idle cores and 12 GB of memory."""
    result = Result(
        environment=detect_environment("mexma_benchmarks.headline"),
        n_threads=threads or detect_hardware().n_usable_cores,
    )
    save = functools.partial(result.save, out)
    status = 0
    try:
        if source is None and (pooling or bundle):
            raise UsageError("--pooling and --bundle belong to one --source: name it")
        n_texts, repeats = (64, 3) if quick else (256, repeats)
        plan = Plan(
            n_threads=result.n_threads,
            n_rounds=repeats,
            n_text_rounds=max(2, repeats * 2 // 5),
            n_cold_starts=max(2, repeats * 2 // 5),
            n_texts=n_texts,
            corpus=_thinned(read_corpus(corpus), n_texts) if corpus else None,
        )
        with progress_bars() as report:
            asked = [(source, pooling)] if source else DEFAULT
            for subject in [_subject(name, pooled, bundle, report) for name, pooled in asked]:
                measure(subject, plan, result, save=save, report=report)
        result.is_complete = True
    except KeyboardInterrupt:
        status = INTERRUPTED
    except MexmaError as error:
        note(f"error: {error}")
        status = error.exit_code
    if result.models:
        save()
        note(f"every sample: {out}")
        typer.echo(markdown(result), nl=False)
    if status:
        raise typer.Exit(status)


if __name__ == "__main__":
    typer.run(main)
