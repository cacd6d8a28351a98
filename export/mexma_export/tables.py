"""What `mexma export` and `mexma parity` print when they are done: tables for people, JSON for scripts."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from mexma_export.gate import ReferenceVectors, Verdict
from mexma_export.pipeline import Exported
from mexma_runtime.terminal import print_json


def show_export(out: Path, exported: Exported, *, as_json: bool) -> None:
    """What the bundle holds now and how each new engine was judged."""
    manifest = exported.manifest
    if as_json:
        print_json(
            {
                "bundle": str(out),
                "manifest": dataclasses.asdict(manifest),
                "judged": _rows(exported.verdicts),
                "refused": exported.refused,
                "warnings": exported.warnings,
            }
        )
        return
    console = _console()
    if exported.verdicts:
        console.print(_table(exported.verdicts))
        console.print(f"reference: {exported.verdicts[0].certificate.reference}")
        _print_notes(console, exported.verdicts)
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


def show_parity(verdicts: list[Verdict], reference: ReferenceVectors, *, as_json: bool) -> None:
    """The figures of each engine, and its five worst sentences."""
    if as_json:
        print_json(parity_json(verdicts, reference))
        return
    console = _console()
    console.print(_table(verdicts))
    corpus = reference.corpus
    console.print(f"reference: {reference.description}; {corpus.name}, {len(corpus.texts)} sentences")
    _print_notes(console, verdicts)
    for verdict in verdicts:
        console.print(f"{verdict.engine.name}, worst sentences:")
        for row in verdict.worst:
            text = corpus.texts[row.index].replace("\n", " ")[:80]
            console.print(f"  {row.cosine:.9f}  [{row.index}] {text}")


def parity_json(verdicts: list[Verdict], reference: ReferenceVectors) -> dict[str, Any]:
    """All figures, as `--report` writes them; the schema's number changes when a field does."""
    return {
        "schema": 1,
        "reference": reference.description,
        "corpus": {
            "name": reference.corpus.name,
            "sha256": reference.corpus.sha256,
            "n_sentences": len(reference.corpus.texts),
        },
        "engines": _rows(verdicts),
    }


def _rows(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    return [
        {
            "engine": verdict.engine.name,
            "passed": not verdict.shortfalls,
            "shortfalls": [str(shortfall) for shortfall in verdict.shortfalls],
            "certificate": dataclasses.asdict(verdict.certificate),
            "worst": [dataclasses.asdict(row) for row in verdict.worst],
        }
        for verdict in verdicts
    ]


def _table(verdicts: list[Verdict]) -> Table:
    """A row for each figure and a column for each engine: four engines fit into 80 columns."""
    table = Table("", title="Vectors against the reference", box=SIMPLE)
    for verdict in verdicts:
        table.add_column(verdict.engine.name, justify="right")

    def add(name: str, figure: Callable[[Verdict], str]) -> None:
        table.add_row(name, *map(figure, verdicts))

    add("cos min", lambda v: f"{v.figures.cosine_min:.7f}")
    add("cos mean", lambda v: f"{v.figures.cosine_mean:.7f}")
    add("max diff", lambda v: f"{v.figures.max_abs_difference:.1e}")
    add("error/distance", lambda v: _optional(v.figures.relative_error_max, ".1e"))
    add("top-1", lambda v: _optional(v.figures.top1_agreement, ".3f"))
    add("top-10", lambda v: _optional(v.figures.top10_agreement, ".3f"))
    add("mixed top-1", lambda v: _optional(v.figures.mixed_top1_agreement, ".3f"))
    add("batch cos min", lambda v: f"{v.invariance.cosine_min:.7f}")
    add("verdict", _verdict)
    return table


def _verdict(verdict: Verdict) -> str:
    if verdict.shortfalls:
        return "REFUSED"
    return "certified" if verdict.certificate.certified else "uncertified"


def _optional(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _print_notes(console: Console, verdicts: list[Verdict]) -> None:
    for note in dict.fromkeys(v.certificate.note for v in verdicts if v.certificate.note):
        names = ", ".join(v.engine.name for v in verdicts if v.certificate.note == note)
        console.print(f"uncertified {names}: {note}")


def _console() -> Console:
    """Prints texts as they are: neither [bold] nor :key: means anything, and a file has no right edge."""
    width = None if sys.stdout.isatty() else 1000
    return Console(soft_wrap=True, markup=False, emoji=False, highlight=False, width=width)
