"""What tests from checkpoint to vectors share."""

from __future__ import annotations

from pathlib import Path

import pytest

from mexma_export.quantize.calibration import shipped_corpus


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibration text: the English part of what ships, which every model here reads."""
    corpus = shipped_corpus()
    assert corpus.languages
    path = tmp_path_factory.mktemp("calibration") / "english.txt"
    lines = [text for text, language in zip(corpus.texts, corpus.languages, strict=True) if language == "en"]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
