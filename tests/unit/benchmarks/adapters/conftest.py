"""What the tests of PyTorch's two adapters share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mexma_benchmarks.adapters.protocol import Task


@pytest.fixture(params=["tiny_checkpoint", "tiny_bert_checkpoint"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    """XLM-R's and BERT's family."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture(scope="session")
def task_of() -> Callable[..., Task]:
    """Makes a task of a checkpoint; what else is given are its options."""

    def make(checkpoint: Path, *, pooling: str = "mean", device: str = "cpu", **options: Any) -> Task:
        return Task(
            checkpoint=str(checkpoint),
            tokenizer=str(checkpoint),
            pooling=pooling,
            is_normalized=pooling == "mean",
            max_tokens=24,
            n_threads=torch.get_num_threads(),
            device=device,
            folder="",
            first_text="the ferry leaves at noon",
            options=options,
        )

    return make
