from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mexma_export.corpus import Corpus
from mexma_export.gate import ReferenceVectors, Verdict
from mexma_export.parity import batch_invariance, compare, worst_rows
from mexma_export.pipeline import Exported
from mexma_export.tables import parity_json, show_export, show_parity
from mexma_export.thresholds import check
from mexma_runtime.bundle import Bundle
from mexma_runtime.manifest import Certificate, EngineEntry
from mexma_runtime.types import Dialect, Precision

CORPUS = Corpus(
    name="[bold]:key:.txt", texts=("plain", "[red]not markup[/red] :smile: \\[x]", "a\tb", '"quoted" \u4e00')
)
RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.standard_normal((4, 8)).astype(np.float32)
REFERENCE = ReferenceVectors(description="PyTorch :100:", corpus=CORPUS, vectors=VECTORS, is_pytorch=True)


def verdict(name: str, noise: float, *, note: str | None = None) -> Verdict:
    vectors = VECTORS + noise * RANDOM.standard_normal((4, 8)).astype(np.float32)
    figures = compare(vectors, VECTORS)
    certificate = Certificate(
        reference=REFERENCE.description,
        corpus=CORPUS.name,
        corpus_sha256=CORPUS.sha256,
        backend="onnxruntime 1",
        provider="CPU",
        processor="x",
        certified=note is None,
        note=note,
        figures={},
    )
    dialect, precision = name.split(".")
    engine = EngineEntry(
        name=name,
        dialect=Dialect(dialect),
        precision=Precision(precision),
        recipe=None,
        activation=None,
        file="",
        weights=[],
        inputs=[],
        output="",
        requires={},
        space="",
        certificates=[certificate],
    )
    return Verdict(
        engine=engine,
        figures=figures,
        invariance=batch_invariance(vectors, vectors),
        worst=worst_rows(vectors, VECTORS),
        shortfalls=check(figures, engine.precision),
    )


VERDICTS = [verdict("fused.fp32", 0), verdict("fused.fp16", 0, note="no [GPU] :x: yet"), verdict("portable.fp16", 0.5)]


def test_a_table_for_people_says_what_was_found_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show_parity(VERDICTS, REFERENCE, as_json=False)
    out = capsys.readouterr().out
    rows = {line.split("  ")[1].strip(): line.split()[-3:] for line in out.splitlines() if line.startswith("  ")}
    assert rows["verdict"] == ["certified", "uncertified", "REFUSED"]
    assert rows["cos min"][:2] == ["1.0000000", "1.0000000"]
    assert float(rows["cos min"][2]) < 1
    assert "reference: PyTorch :100:; [bold]:key:.txt, 4 sentences" in out
    assert "uncertified fused.fp16: no [GPU] :x: yet" in out
    assert "[1] [red]not markup[/red] :smile: \\[x]" in out


def test_four_engines_fit_a_terminal_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("fused.fp16", "fused.fp32", "portable.fp16", "portable.fp32")
    show_parity([verdict(name, 0) for name in names], REFERENCE, as_json=False)
    table = capsys.readouterr().out.partition("reference:")[0]
    assert max(map(len, table.splitlines())) <= 80
    assert all(name in table for name in names)


def test_json_is_what_the_report_says(capsys: pytest.CaptureFixture[str]) -> None:
    show_parity(VERDICTS, REFERENCE, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(parity_json(VERDICTS, REFERENCE)))
    assert printed["corpus"] == {"name": CORPUS.name, "sha256": CORPUS.sha256, "n_sentences": 4}
    assert [row["passed"] for row in printed["engines"]] == [True, True, False]
    assert printed["engines"][2]["shortfalls"][0].startswith("cosine_min: expected >= ")


@pytest.mark.parametrize("verdicts", [[], VERDICTS])
def test_an_export_shows_the_bundle(
    tiny_bundle: Path, verdicts: list[Verdict], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    exported = Exported(manifest=manifest, verdicts=verdicts, refused=["x: y"], warnings=("mind :this:",))
    show_export(Path("[out]"), exported, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert "bundle: [out]" in lines
    assert "pooling: cls (1_Pooling/config.json)" in lines
    assert "engines: fused.fp16, fused.fp32, portable.fp16, portable.fp32" in lines
    assert ("reference: PyTorch :100:" in lines) == bool(verdicts)

    show_export(Path("[out]"), exported, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["manifest"]["pooling"] == {"value": "cls", "source": "1_Pooling/config.json"}
    assert [row["engine"] for row in printed["judged"]] == [v.engine.name for v in verdicts]
    assert (printed["bundle"], printed["refused"], printed["warnings"]) == ("[out]", ["x: y"], ["mind :this:"])
