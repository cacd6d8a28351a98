"""`python -m mexma_benchmarks.studies.one_line SOURCE --bundle DIR`: sentence-transformers on a bundle, and on PyTorch.

How many texts of drawn lengths a second `SentenceTransformer(BUNDLE).encode` embeds at its own batch size, beside
`Encoder.encode` and beside the checkpoint in PyTorch. Each in a process of its own, in turns.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mexma_benchmarks.result.environment import detect_environment
from mexma_benchmarks.result.estimates import estimate_median, ratios
from mexma_benchmarks.run.models import MINILM, minilm_source
from mexma_benchmarks.run.prepared import Prepared, prepare_model
from mexma_benchmarks.run.process import SubjectProcess
from mexma_benchmarks.run.subjects import Subject, engine_subjects
from mexma_benchmarks.run.timing import by_name, take_turns
from mexma_benchmarks.run.workload import drawn_texts, text_job
from mexma_export.checkpoint.sources import resolve_source
from mexma_runtime.hardware import detect_hardware
from mexma_runtime.terminal import progress_bars

PYTORCH, BUNDLE, ENCODER = "sentence-transformers, PyTorch", "sentence-transformers, bundle", "Encoder"
ALSO = ("sentence-transformers", "openvino")
"""Packages whose versions matter here too."""


def rates(prepared: Prepared, engine: Subject, texts: list[str], n_rounds: int) -> dict[str, list[float]]:
    """The ms that each of the three takes for all `texts`, a round each in turns, after one to warm up."""
    own: dict[str, Any] = {"engine": engine.options["engine"], "backend": engine.options["backend"]}
    subjects: dict[str, tuple[str, dict[str, Any]]] = {
        PYTORCH: ("sbert", {"backend": "torch"}),
        BUNDLE: ("sbert", {"backend": "bundle", "model_kwargs": own}),
        ENCODER: ("mexma", own),
    }
    job = text_job(texts, prepared.tokenize, name="drawn lengths")
    with ExitStack() as stack:
        calls = {}
        for name, (adapter, options) in subjects.items():
            task = dataclasses.replace(prepared.task, options=options)
            process = stack.enter_context(SubjectProcess(adapter, task))
            process.ask(job.request)
            calls[name] = functools.partial(process.ask, job.request)
        answers = by_name(take_turns(calls), n_rounds)
    return {name: [answer["ms"] for answer in given] for name, given in answers.items()}


def main(
    source: Annotated[str, typer.Argument(help="minilm, a folder, or standin:NAME.")],
    bundle: Annotated[Path | None, typer.Option(help="A bundle of it; default: engines/bench.")] = None,
    engine: Annotated[list[str] | None, typer.Option(help="Engines to measure; default: all of the CPU's.")] = None,
    n_texts: Annotated[int, typer.Option(min=64)] = 1024,
    n_rounds: Annotated[int, typer.Option(min=3)] = 7,
) -> None:
    """Print a table of rates and ratios, with the machine and the versions."""
    found = minilm_source() if source == MINILM else resolve_source(source)
    n_threads = detect_hardware().n_usable_cores
    with progress_bars() as report:
        prepared = prepare_model(
            found, pooling=None, bundle=bundle, int8=True, n_threads=n_threads, device="cpu", report=report
        )
    texts = drawn_texts(prepared.tokenize, n_texts)
    table = Table(title=f"{prepared.name}: texts a second, {n_texts} texts, medians of {n_rounds} rounds")
    for heading in ("engine", PYTORCH, BUNDLE, ENCODER, "bundle / Encoder", "bundle / PyTorch"):
        table.add_column(heading, justify="left" if heading == "engine" else "right")
    for subject in engine_subjects(prepared.bundle, "cpu"):
        name = subject.options["engine"]
        if subject.unavailable or (engine and name not in engine):
            continue
        ms = rates(prepared, subject, texts, n_rounds)
        row = [f"{n_texts / estimate_median(ms[way]).median * 1e3:,.0f}" for way in (PYTORCH, BUNDLE, ENCODER)]
        row += [f"{estimate_median(ratios(ms[way], ms[BUNDLE])).median:.2f}" for way in (ENCODER, PYTORCH)]
        table.add_row(f"{name} on {subject.options['backend']}", *row)
    console = Console(width=160)
    console.print(table)
    environment = detect_environment(("python", "-m", "mexma_benchmarks.studies.one_line"))
    say = functools.partial(console.print, markup=False, highlight=False)
    say(shlex.join(environment.command))
    versions = environment.versions | {package: version(package) for package in ALSO}
    say(", ".join(f"{package} {found}" for package, found in versions.items()))
    say(f"{environment.hardware.processor}, {n_threads} threads, load average {environment.load_average:.1f}")


if __name__ == "__main__":
    typer.run(main)
