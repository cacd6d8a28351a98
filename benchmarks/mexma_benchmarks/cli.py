"""The command `mexma bench`; `mexma` finds it through its entry point."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from mexma_benchmarks.run.models import MINILM
from mexma_benchmarks.run.sizes import SIZES, Effort
from mexma_runtime.bundle.whole_files import require_writable
from mexma_runtime.errors import MexmaError, MissingDependencyError, UsageError
from mexma_runtime.terminal import note, progress_bars
from mexma_runtime.types import Pooling

FULL_SIZE = "standin:mexma"
PEERS_FOLDER = Path(".peers")

HELP = "\n\n".join(
    (
        "Measure engines against PyTorch and other libraries, on this machine.",
        f"`make bench` is `mexma bench run`: PyTorch and our engines on {FULL_SIZE} (full size, random weights: for "
        "speed) and all-MiniLM-L6-v2 (trained: for fidelity), in about ten minutes on two cores.",
        "`make bench-int8` is `mexma bench run --int8`: our int8 engines too. Quantizing takes some minutes, once.",
        "`make bench-full` is `mexma bench run --effort full --peers`: more shapes, arrival rates and rounds, and "
        "every peer that `make peers` has installed. It takes an hour or two.",
        "Subjects run in processes of their own and take turns; whoever waits is stopped. Every sample is saved as it "
        "comes: interrupting keeps what was measured.",
    )
)


def register_bench(app: typer.Typer) -> None:
    """Add `mexma bench`."""
    bench = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode=None, callback=_require)
    bench.command("run")(run_command)
    bench.command("compare")(compare_command)
    bench.command("report")(report_command)
    bench.command("peers")(peers_command)
    app.add_typer(bench, name="bench")


def run_command(
    sources: Annotated[
        list[str] | None,
        typer.Argument(help=f"Checkpoints: {MINILM}, standin:NAME, folders or hub ids. Default: {FULL_SIZE} {MINILM}."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for result.json and the report.", readable=False)] = Path(
        "engines/bench/result"
    ),
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="The one source's bundle. Default: one in engines/bench, exported where it is missing.", readable=False
        ),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Measure int8 engines of all recipes too; added to a bundle without them.")
    ] = False,
    effort: Annotated[
        Effort, typer.Option(help="How much time to take; smoke only tries whether all runs.")
    ] = Effort.QUICK,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Of every subject; default: the usable cores.")] = None,
    pooling: Annotated[Pooling | None, typer.Option(help="Instead of what the checkpoint's files say.")] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="Real text, as for `mexma parity`; default: drawn lengths, and for fidelity the package's own.",
            readable=False,
        ),
    ] = None,
    peers: Annotated[bool, typer.Option("--peers", help="Measure all peers too.")] = False,
    peer: Annotated[list[str] | None, typer.Option(help="Measure this peer too; may be given several times.")] = None,
    peers_folder: Annotated[
        Path, typer.Option(help="Where `make peers` puts their environments.", readable=False)
    ] = PEERS_FOLDER,
    url: Annotated[
        list[str] | None, typer.Option(help="A server to measure: OpenAI's /v1/embeddings or TEI's /embed.")
    ] = None,
    url_model: Annotated[str | None, typer.Option(help="Name of the model, for servers that have several.")] = None,
    rate: Annotated[
        list[float] | None, typer.Option(min=1e-3, help="Arrivals a second; may be given several times.")
    ] = None,
    p99_ms: Annotated[float | None, typer.Option(min=1e-3, help="Bound on the 99th percentile under load.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure this alone: ids, texts, cold start, load, clients or fidelity; may be given several times."
        ),
    ] = None,
    engine: Annotated[
        list[str] | None, typer.Option(help="Of our engines, this one by its name; may be given several times.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Another checkout of this project: measure our engines with its runtime too.", readable=False
        ),
    ] = None,
) -> None:
    """Measure checkpoints and write result.json, report.md, report.html and charts."""
    from mexma_benchmarks.peers import find_peers, peer_subject
    from mexma_benchmarks.report.document import write_report
    from mexma_benchmarks.result.environment import detect_environment
    from mexma_benchmarks.result.result import Result
    from mexma_benchmarks.run.bench import Order, run_bench
    from mexma_benchmarks.run.subjects import EVERYTHING, server_subjects
    from mexma_export.corpus.corpus import read_corpus
    from mexma_runtime.hardware import detect_hardware

    asked = sources or [FULL_SIZE, MINILM]
    if bundle and len(asked) != 1:
        raise UsageError(f"--bundle belongs to one source, and these are {len(asked)}: {' '.join(asked)}")
    if unknown := sorted(set(only or ()) - EVERYTHING):
        raise UsageError(f"--only {unknown[0]}: expected one of {', '.join(sorted(EVERYTHING))}")
    wanted = find_peers(peer or []) if peers or peer else ()
    sizes = dataclasses.replace(SIZES[effort], rates_per_s=tuple(sorted(rate or ())), p99_bound_ms=p99_ms)
    order = Order(
        sources=asked,
        bundle=bundle,
        pooling=pooling,
        int8=int8,
        device=device,
        corpus=read_corpus(corpus) if corpus else None,
        others=[*(peer_subject(found, peers_folder) for found in wanted), *server_subjects(url or [], url_model)],
        cache=peers_folder / "converted",
        sizes=sizes,
        against=against,
        only=frozenset(only or EVERYTHING),
        engines=frozenset(engine or ()),
    )
    result = Result(
        environment=detect_environment(("mexma",)),
        n_threads=threads or detect_hardware().n_usable_cores,
        settings={"effort": effort.value, "device": device, **sizes.described()},
    )
    result_file = out / "result.json"
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    require_writable(there / result_file.name)
    failure: MexmaError | None = None
    try:
        with progress_bars() as report:
            run_bench(order, result, result_file, report=report)
    except MexmaError as error:
        failure = error
    except (KeyboardInterrupt, SystemExit):
        failure = InterruptedRunError("interrupted: what was measured is kept")
    if result.models:
        result.save(result_file)
        for path in (result_file, *write_report(result, out)):
            note(f"wrote {path}")
    if failure:
        raise failure


class InterruptedRunError(MexmaError):
    """The user has seen enough."""

    exit_code = 130


def report_command(
    result: Annotated[Path, typer.Argument(help="A result.json.", readable=False)],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report; default: beside the result.", readable=False)
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The subject to hold all others against; default: PyTorch as in the run.")
    ] = None,
) -> None:
    """Write the report of a result once more, or of how fast all are relative to another subject."""
    from mexma_benchmarks.report.document import write_report
    from mexma_benchmarks.result.result import Result

    loaded = Result.load(result)
    if baseline:
        if out is None:
            raise UsageError("--baseline: choose another folder with --out, so that the run's own report stays")
        loaded.hold_against(baseline)
    for path in write_report(loaded, out or result.parent):
        note(f"wrote {path}")


def compare_command(
    a: Annotated[Path, typer.Argument(help="A result.json.", readable=False)],
    b: Annotated[Path, typer.Argument(help="Another one, measured later.", readable=False)],
    allow_unlike_hosts: Annotated[
        bool, typer.Option("--allow-unlike-hosts", help="Compare results of different machines all the same.")
    ] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
) -> None:
    """Show what B changed against A, and which differences are larger than the noise."""
    from mexma_benchmarks.report.comparison import render_comparison
    from mexma_benchmarks.result.compare import compare
    from mexma_benchmarks.result.result import Result

    found = compare(Result.load(a), Result.load(b), allow_unlike_hosts=allow_unlike_hosts)
    typer.echo(render_comparison(found, as_markdown=as_markdown), nl=False)


def peers_command(
    names: Annotated[list[str] | None, typer.Argument(help="Peers; default: all.")] = None,
    make: Annotated[bool, typer.Option("--make", help="Install their environments.")] = False,
    peers_folder: Annotated[Path, typer.Option(help="Where their environments are.", readable=False)] = PEERS_FOLDER,
) -> None:
    """List the other libraries that can be measured, or install them, each in an environment of its own."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from mexma_benchmarks.peers import find_peers, make_peers, peer_subject

    wanted = find_peers(names or [])
    try:
        if make:
            with progress_bars() as report:
                make_peers(wanted, peers_folder, report)
    finally:
        table = Table("peer", "state", box=SIMPLE)
        table.add_column("what is measured", overflow="fold")
        for peer in wanted:
            table.add_row(peer.name, peer_subject(peer, peers_folder).unavailable or "ready", peer.note)
        Console().print(table)


def _require() -> None:
    for package in ("markdown_it", "matplotlib"):
        if find_spec(package) is None:
            raise MissingDependencyError(package, needed_for="mexma bench", extra="bench")
