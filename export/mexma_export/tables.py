"""What `mexma export` and `mexma parity` print when they are done: tables for people, JSON for scripts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mexma_export.gate import ReferenceVectors, Verdict
from mexma_export.pipeline import Exported


def show_export(out: Path, exported: Exported, *, as_json: bool) -> None:
    """What the bundle holds now and how each new engine was judged."""
    manifest = exported.manifest
    if as_json:
        print_json({"bundle": str(out), "manifest": json.loads(manifest.to_json()), "judged": _rows(exported.verdicts)})
        return
    console = Console(soft_wrap=True)
    if exported.verdicts:
        console.print(_table(exported.verdicts))
        console.print(f"reference: {exported.verdicts[0].certificate.reference}", markup=False, highlight=False)
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
    for line in lines:
        console.print(line, markup=False, highlight=False)


def show_parity(verdicts: list[Verdict], reference: ReferenceVectors, *, as_json: bool) -> None:
    """The figures of each engine, and its five worst sentences."""
    if as_json:
        print_json(parity_json(verdicts, reference))
        return
    console = Console(soft_wrap=True)
    console.print(_table(verdicts))
    corpus = reference.corpus
    console.print(f"reference: {reference.description}; {corpus.name}, {len(corpus.texts)} sentences", highlight=False)
    _print_notes(console, verdicts)
    for verdict in verdicts:
        console.print(f"{verdict.engine.name}, worst sentences:", highlight=False)
        for row in verdict.worst:
            text = corpus.texts[row.index].replace("\n", " ")[:80]
            console.print(f"  {row.cosine:.9f}  [{row.index}] {text}", markup=False, highlight=False)


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


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    Console(soft_wrap=True).print(json.dumps(value, indent=2, ensure_ascii=False), markup=False, highlight=False)


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
    table = Table(title="Vectors against the reference")
    table.add_column("engine")
    for name in (
        "cos min",
        "cos mean",
        "max diff",
        "error/distance",
        "top-1",
        "top-10",
        "mixed top-1",
        "batch cos min",
    ):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for verdict in verdicts:
        f = verdict.figures
        missed = "certified" if verdict.certificate.certified else "uncertified"
        table.add_row(
            verdict.engine.name,
            f"{f.cosine_min:.7f}",
            f"{f.cosine_mean:.7f}",
            f"{f.max_abs_difference:.1e}",
            _optional(f.relative_error_max, ".1e"),
            _optional(f.top1_agreement, ".3f"),
            _optional(f.top10_agreement, ".3f"),
            _optional(f.mixed_top1_agreement, ".3f"),
            f"{verdict.invariance.cosine_min:.7f}",
            "REFUSED" if verdict.shortfalls else missed,
        )
    return table


def _optional(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _print_notes(console: Console, verdicts: list[Verdict]) -> None:
    for note in dict.fromkeys(v.certificate.note for v in verdicts if v.certificate.note):
        names = ", ".join(v.engine.name for v in verdicts if v.certificate.note == note)
        console.print(f"uncertified {names}: {note}", highlight=False)
