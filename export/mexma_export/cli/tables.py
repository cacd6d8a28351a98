"""What `mexma export` prints when it is done, and what it shares with `mexma parity`: how engines were judged."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from mexma_export.bundle.pipeline import Exported
from mexma_export.parity.gate import Verdict
from mexma_export.parity.report_json import verdict_json
from mexma_export.quantize.gains import gains_table
from mexma_runtime.terminal import print_json


def show_export(out: Path, exported: Exported, *, as_json: bool) -> None:
    """What the bundle holds now and how each new engine was judged."""
    manifest = exported.manifest
    if as_json:
        print_json(
            {
                "bundle": str(out),
                "manifest": dataclasses.asdict(manifest),
                "judged": [verdict_json(verdict) for verdict in exported.verdicts],
                "refused": exported.refused,
                "not_judged": exported.unjudged,
                "warnings": exported.warnings,
            }
        )
        return
    console = open_console()
    if exported.verdicts:
        console.print(verdict_table(exported.verdicts))
        console.print(f"reference: {exported.verdicts[0].certificate.reference}")
        print_notes(console, exported.verdicts)
    if exported.unjudged:
        console.print(
            f"not judged: {', '.join(exported.unjudged)}: they run on a GPU alone, where `mexma parity --device cuda "
            "--certify` judges them"
        )
    if exported.quantized:
        console.print(gains_table(exported.quantized))
    lines = [
        f"bundle: {out}",
        f"model: {manifest.model.id}, {manifest.model.n_layers} layers, {manifest.dim} numbers a vector",
        f"pooling: {manifest.pooling.value} ({manifest.pooling.source})",
        f"normalised: {manifest.normalize.value} ({manifest.normalize.source})",
        f"most tokens: {manifest.text.max_tokens} ({manifest.text.max_tokens_source})",
        f"engines: {', '.join(engine.name for engine in manifest.engines) or 'none'}",
        f"on disk: {sum(entry.size for entry in manifest.files) / 1e6:,.0f} MB",
    ]
    console.print("\n".join(lines))


def verdict_table(verdicts: list[Verdict]) -> Table:
    """A row for each figure and a column for each engine: four engines fit into 80 columns."""
    table = Table("", title="Vectors against the reference", box=SIMPLE)
    for verdict in verdicts:
        table.add_column(re.sub(r"\.(int8|fp8)\.", r".\1\n", verdict.engine.name), justify="right")

    def add(name: str, figure: Callable[[Verdict], str]) -> None:
        table.add_row(name, *map(figure, verdicts))

    def add_figure(name: str, field: str, spec: str) -> None:
        add(name, lambda v: optional(getattr(v.figures, field), spec))

    add_figure("cos min", "cosine_min", ".7f")
    add_figure("cos 1st pct", "cosine_p1", ".7f")
    add_figure("cos mean", "cosine_mean", ".7f")
    add_figure("max diff", "max_abs_difference", ".1e")
    add_figure("norm ratio min", "norm_ratio_min", ".7f")
    add_figure("norm ratio max", "norm_ratio_max", ".7f")
    add_figure("err/dist mean", "relative_error_mean", ".1e")
    add_figure("err/dist max", "relative_error_max", ".1e")
    add_figure("top-1", "top1_agreement", ".4f")
    add_figure("top-10", "top10_agreement", ".4f")
    add_figure("mixed top-1", "mixed_top1_agreement", ".4f")
    add_figure("mixed top-10", "mixed_top10_agreement", ".4f")
    add("cos alone", lambda v: f"{v.invariance.alone.cosine_min:.7f}")
    add("cos in a mix", lambda v: f"{v.invariance.mixed.cosine_min:.7f}")
    add("cos shuffled", lambda v: f"{v.invariance.shuffled.cosine_min:.7f}")
    add("verdict", _verdict)
    return table


def optional(value: float | None, spec: str) -> str:
    """A figure, or a dash where it was not measured."""
    return "-" if value is None else format(value, spec)


def _where(verdict: Verdict) -> str:
    certificate = verdict.certificate
    return f"{certificate.backend}, {certificate.provider}, {certificate.processor}"


def _verdict(verdict: Verdict) -> str:
    if verdict.shortfalls:
        return "REFUSED"
    return "certified" if verdict.certificate.certified else "uncertified"


def print_notes(console: Console, verdicts: list[Verdict]) -> None:
    """What ran the engines, and why the figures of some certify nothing."""
    for where in dict.fromkeys(map(_where, verdicts)):
        names = ", ".join(v.engine.name for v in verdicts if _where(v) == where)
        console.print(f"measured on {where}: {names}")
    for note in dict.fromkeys(v.certificate.note for v in verdicts if v.certificate.note):
        names = ", ".join(v.engine.name for v in verdicts if v.certificate.note == note)
        console.print(f"uncertified {names}: {note}")


def open_console() -> Console:
    """Prints texts as they are: neither [bold] nor :key: means anything, and a file has no right edge."""
    width = None if sys.stdout.isatty() else 1000
    return Console(soft_wrap=True, markup=False, emoji=False, highlight=False, width=width)
