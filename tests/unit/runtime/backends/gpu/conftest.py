from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mexma_runtime.bundle.bundle import Bundle


@pytest.fixture(scope="module")
def bundle(packed_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A copy: `packed_on_cpu` writes beside a graph."""
    return Bundle.open(shutil.copytree(packed_bundle, tmp_path_factory.mktemp("gpu") / "bundle"))
