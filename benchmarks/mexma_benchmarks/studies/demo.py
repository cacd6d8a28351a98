"""`python -m mexma_benchmarks.studies.demo [FOLDER]`: the whole path on a small trained model, in a minute."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from mexma_benchmarks.result.estimates import estimate_median, ratios, relative_spread
from mexma_benchmarks.run.models import minilm_source
from mexma_benchmarks.run.timing import rounds
from mexma_export.bundle.pipeline import Exported, export
from mexma_export.bundle.request import ExportRequest
from mexma_export.checkpoint.checkpoint import load_checkpoint
from mexma_export.checkpoint.sources import Source
from mexma_export.parity.gate import open_pytorch
from mexma_runtime import Encoder
from mexma_runtime.bundle.manifest import Manifest
from mexma_runtime.errors import MexmaError
from mexma_runtime.similarity import similarity
from mexma_runtime.terminal import Progress, note, progress_bars
from mexma_runtime.types import Precision, Vectors

SENTENCES = (
    "The cat is asleep on the sofa.",
    "Interest rates rose again.",
    "How do I reset my password?",
    "When does the next train leave?",
    "A kitten naps on the couch.",
    "Borrowing became more expensive.",
    "I cannot log in to my account.",
    "The trains are late today.",
)
ENGINES = Path("engines/demo")
PYTORCH = "PyTorch fp32"
N_ROUNDS = 15
BUSY_SPREAD = 0.3


def run_demo(out: Path, console: Console) -> None:
    """Export all-MiniLM-L6-v2 into `out`, hold it against PyTorch, and show its engines and its vectors."""
    say = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
    source = minilm_source()
    say(f"Exporting {source.model_id} to {out}; PyTorch judges every engine.")
    with progress_bars() as report:
        exported = export(source, ExportRequest(out=out, precisions=(Precision.FP32, Precision.FP16)), progress=report)
        samples_ms, vectors = measure(source, out, exported, report)
    console.print(engines_table(exported, samples_ms))
    for reason in dict.fromkeys(v.certificate.note for v in exported.verdicts if v.certificate.note):
        say(f"* uncertified: {reason}")
    say("The dialects of one precision share their weights.")
    if any(relative_spread(times) > BUSY_SPREAD for times in samples_ms.values()):
        say("These times differed much from round to round: is the machine busy?")
    console.print(neighbours_table(SENTENCES, vectors))
    say("\nTry next:\n  from mexma_runtime import Encoder")
    say(f'  vectors = Encoder.load("{out}", precision="fp32").encode(["One sentence.", "Another."])')
    say("  make export MODEL=facebook/MEXMA   # or a local folder, or standin:mexma: full size, random weights")


def measure(source: Source, out: Path, exported: Exported, report: Progress) -> tuple[dict[str, list[float]], Vectors]:
    """For PyTorch and every new engine the ms a sentence of each round; and the sentences' vectors, fp32."""
    with ExitStack() as stack:
        default = stack.enter_context(Encoder.load(out, precision=Precision.FP32))
        n_threads = default.info.n_threads
        pytorch = stack.enter_context(open_pytorch(load_checkpoint(source), n_threads=n_threads))
        encoders: dict[str, Callable[[str], object]] = {PYTORCH: lambda text: pytorch.encode([text])}
        for verdict in exported.verdicts:
            engine = verdict.engine
            encoder = Encoder.load(out, precision=engine.precision, dialect=engine.dialect, n_threads=n_threads)
            encoders[engine.name] = stack.enter_context(encoder).encode
        calls = {name: functools.partial(_one_by_one, encode) for name, encode in encoders.items()}
        samples_ms: dict[str, list[float]] = {name: [] for name in calls}
        for done, taken_ms in zip(range(1, N_ROUNDS + 1), rounds(calls), strict=False):
            for name, ms in taken_ms.items():
                samples_ms[name].append(ms / len(SENTENCES))
            report("timing", done, N_ROUNDS)
        return samples_ms, default.encode(SENTENCES)


def engines_table(exported: Exported, samples_ms: Mapping[str, Sequence[float]]) -> Table:
    """What each engine takes, how near it comes to PyTorch and how fast it is."""
    table = Table(title="One sentence at a time on the CPU: medians, all engines taking turns")
    table.add_column("engine")
    for heading in ("MB on disk", "least cosine to PyTorch", "ms a sentence", "times as fast"):
        table.add_column(heading, justify="right")
    pytorch_ms = samples_ms[PYTORCH]
    table.add_row(PYTORCH, "", "", f"{estimate_median(pytorch_ms).median:.2f}", "1")
    for verdict in exported.verdicts:
        engine, own_ms = verdict.engine, samples_ms[verdict.engine.name]
        mark = "" if verdict.certificate.certified else "*"
        table.add_row(
            engine.name,
            f"{_size(exported.manifest, engine.file, *engine.weights) / 1e6:.1f}",
            f"{verdict.figures.cosine_min:.7f}{mark}",
            f"{estimate_median(own_ms).median:.2f}",
            f"{estimate_median(ratios(pytorch_ms, own_ms)).median:.1f}",
        )
    return table


def neighbours_table(sentences: Sequence[str], vectors: Vectors) -> Table:
    """Each sentence and the nearest of the others; `vectors`: float32 `(n, dim)`."""
    similarities = similarity(vectors, vectors)
    np.fill_diagonal(similarities, -np.inf)
    table = Table(title="Nearest neighbours")
    table.add_column("sentence")
    table.add_column("its nearest")
    table.add_column("cosine", justify="right")
    for sentence, row in zip(sentences, similarities, strict=True):
        table.add_row(sentence, sentences[int(row.argmax())], f"{row.max():.2f}")
    return table


def _one_by_one(encode: Callable[[str], object]) -> None:
    for text in SENTENCES:
        encode(text)


def _size(manifest: Manifest, *names: str) -> int:
    return sum(manifest.file(name).size for name in names)


def main(
    out: Annotated[Path, typer.Argument(help="Folder of the bundle.")] = ENGINES,
) -> None:
    """Export all-MiniLM-L6-v2, check it against PyTorch, and embed some sentences with it."""
    try:
        run_demo(out, Console())
    except MexmaError as error:
        note(f"error: {error}")
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
