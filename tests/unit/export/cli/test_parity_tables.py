from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile

import pytest

from mexma_export.cli.parity_tables import show_parity
from mexma_export.parity.breakdown import Side
from mexma_export.parity.gate import ReferenceVectors, Verdict
from mexma_export.parity.report_json import parity_json

Show = Callable[..., str]


@pytest.fixture
def show(parity_reference: ReferenceVectors, capsys: pytest.CaptureFixture[str]) -> Show:
    def printed(verdicts: list[Verdict], *by: Side, reference: ReferenceVectors = parity_reference) -> str:
        show_parity(verdicts, reference, by=by, as_json=False)
        return capsys.readouterr().out

    return printed


def cells(out: str, title: str) -> dict[str, list[str]]:
    """First column -> the others, of the table of that title."""
    _, *lines = out.partition(title)[2].splitlines()[1:]  # a table begins and ends with a blank line
    rows = [line.split() for line in takewhile(str.strip, lines)]
    return {row[0]: row[1:] for row in rows}


def test_a_table_for_people_says_what_was_found_as_it_is(verdicts: list[Verdict], show: Show) -> None:
    out = show(verdicts)
    rows = {line.split("  ")[1].strip(): line.split()[-3:] for line in out.splitlines() if line.startswith("  ")}
    assert rows["verdict"] == ["certified", "uncertified", "REFUSED"]
    assert rows["cos min"][:2] == ["1.0000000", "1.0000000"]
    assert float(rows["cos min"][2]) < 1
    assert [rows[f"cos {way}"][0] for way in ("alone", "in a mix", "shuffled")] == [
        "1.0000000",
        "0.7500000",
        "0.5000000",
    ]
    assert "reference: PyTorch :100:; [bold]:key:.txt, 4 sentences" in out
    assert "measured on onnxruntime 1, CPU, [x]: fused.fp32, fused.fp16, portable.fp16" in out
    assert "uncertified fused.fp16: no [GPU] :x: yet" in out
    assert "[1] [red]not markup[/red] :smile: \\[x]" in out


def test_four_engines_fit_a_terminal_of_80_columns(make_verdict: Callable[..., Verdict], show: Show) -> None:
    names = ("fused.fp16", "fused.fp32", "portable.fp16", "portable.fp32")
    out = show([make_verdict(name, 0) for name in names], *Side)
    tables = [line for line in out.splitlines() if not line.startswith(("reference:", "measured on"))]
    assert max(map(len, tables)) <= 80
    assert all(name in out for name in names)


def test_breakdowns_are_shown_where_asked(
    verdicts: list[Verdict], parity_reference: ReferenceVectors, show: Show
) -> None:
    assert "fused.fp32 by" not in show(verdicts)
    out = show(verdicts, Side.LENGTH)
    rows = cells(out, "portable.fp16 by length")
    assert (rows["tokens"][0], rows["1-8"][0], rows["17-32"][0]) == ("n", "3", "1")
    out = show(verdicts, Side.LANGUAGE, Side.LANGUAGE)
    assert out.count("portable.fp16 by language") == 1
    assert cells(out, "portable.fp16 by language")["[b]"][0] == "1"
    bare = [replace(v, breakdown=replace(v.breakdown, by_language={})) for v in verdicts]
    assert "by language: the corpus does not say its languages" in show(bare, Side.LANGUAGE)


def test_tasks_are_shown_where_there_are_any(
    verdicts: list[Verdict], parity_reference: ReferenceVectors, show: Show
) -> None:
    out = show(verdicts)
    mining = cells(out, "difference to the reference: [tatoeba]")
    assert mining["deu-eng"] == ["200", "97.50", *["100.00", "+2.50"] * 3]
    assert mining["zho-CN-eng"] == ["200", "0.00", *["1.50", "+1.50"] * 3]
    mean = next(line.split() for line in out.splitlines() if line.split()[:1] == ["mean"])
    assert mean == ["mean", "400", "48.75", *["50.75", "+2.00"] * 3]
    sts = cells(out, "Spearman, [sts].tsv: 2 pairs")
    assert sts["reference"] == ["0.8125"]
    assert sts["portable.fp16"] == ["0.7500", "-0.0625"]
    none = replace(parity_reference, mining=None, mining_errors=None, sts=None, sts_correlation=None)
    out = show([replace(v, mining=None, sts=None) for v in verdicts], reference=none)
    assert "xsim" not in out
    assert "Spearman" not in out


def test_json_is_what_the_report_says(
    verdicts: list[Verdict], parity_reference: ReferenceVectors, capsys: pytest.CaptureFixture[str]
) -> None:
    show_parity(verdicts, parity_reference, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(parity_json(verdicts, parity_reference), allow_nan=False))
