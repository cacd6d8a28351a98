from __future__ import annotations

import json
from pathlib import Path

import pytest

from mexma_export.bundle.pipeline import Exported
from mexma_export.cli.tables import show_export
from mexma_export.parity.gate import Verdict
from mexma_runtime.bundle.bundle import Bundle


@pytest.mark.parametrize("is_judged", [False, True])
def test_an_export_shows_the_bundle(
    tiny_bundle: Path, verdicts: list[Verdict], is_judged: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    judged = verdicts if is_judged else []
    exported = Exported(manifest=manifest, verdicts=judged, refused=["x: y"], warnings=("mind :this:",))
    show_export(Path("[out]"), exported, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert "bundle: [out]" in lines
    assert "pooling: cls (1_Pooling/config.json)" in lines
    assert "engines: fused.fp16, fused.fp32, portable.fp16, portable.fp32" in lines
    assert ("reference: PyTorch :100:" in lines) == is_judged

    show_export(Path("[out]"), exported, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["manifest"]["pooling"] == {"value": "cls", "source": "1_Pooling/config.json"}
    assert [row["engine"] for row in printed["judged"]] == [v.engine.name for v in judged]
    assert (printed["bundle"], printed["refused"], printed["warnings"]) == ("[out]", ["x: y"], ["mind :this:"])
