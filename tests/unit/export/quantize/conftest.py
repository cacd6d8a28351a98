"""Calibration text, and recipes that try little."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mexma_export.checkpoint.checkpoint import Checkpoint
from mexma_export.quantize.calibration import Calibration, load_calibration, shipped_corpus
from mexma_export.quantize.recipe import Recipe, load_recipe
from mexma_export.quantize.statistics import InputStatistics, Observer

MakeRecipe = Callable[..., Recipe]
Observe = Callable[..., InputStatistics]


@pytest.fixture(scope="session")
def few_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of every sixth text of the package's calibration text."""
    path = tmp_path_factory.mktemp("calibration") / "few.txt"
    path.write_text("\n".join(shipped_corpus().texts[::6]), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def calibration(checkpoint: Checkpoint, few_texts: Path) -> Calibration:
    """`few_texts` as ids of `tiny`."""
    return load_calibration(checkpoint, few_texts)


@pytest.fixture(scope="session")
def make_recipe() -> MakeRecipe:
    """`make_recipe(name="fast", **changes)`: a shipped recipe that tries two alphas and two clip ratios.

    A small FFN takes a larger share of split channels.
    """

    def make(name: str = "fast", **changes: object) -> Recipe:
        few = {"smoothquant_alphas": (0.5, 0.8), "clip_ratios": (1.0, 0.8), "split_channel_share": 0.25}
        return dataclasses.replace(load_recipe(name), **few | changes)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def observe() -> Observe:
    """`observe(x)`: statistics of float32 `(tokens, channels)`."""

    def make(x: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> InputStatistics:
        observer = Observer(x.shape[1], np.ones(len(x), np.float32), seed=0)
        observer.add(x)
        return observer.finish()

    return make
