from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mexma_benchmarks.adapters.mexma import open_model
from mexma_benchmarks.adapters.protocol import Task
from mexma_runtime.errors import UsageError
from mexma_runtime.types import Ragged

RAGGED = Ragged.from_sequences([[0, 5, 6, 7, 2], [0, 2], [0, 9, 2]])


def task_of(bundle: Path, **options: str) -> Task:
    return Task(
        checkpoint="",
        tokenizer="",
        pooling="cls",
        is_normalized=False,
        max_tokens=64,
        n_threads=1,
        device="cpu",
        folder=str(bundle),
        first_text="",
        options={"engine": "fused.fp32", "backend": "onnxruntime", "precision": "fp32"} | options,
    )


def test_ids_give_the_same_vectors_end_to_end_and_alone(tiny_bundle: Path) -> None:
    model = open_model(task_of(tiny_bundle))
    together = model.encode_ragged(RAGGED.ids, RAGGED.lengths)
    for row in range(len(RAGGED)):
        np.testing.assert_allclose(model.encode_ids([RAGGED[row].tolist()])[0], together[row], atol=1e-5)


def test_options_reach_the_encoder(tiny_bundle: Path) -> None:
    """Which refuses on a CPU what is for GPUs."""
    for option in ("attention", "graphs"):
        with pytest.raises(UsageError, match=option):
            open_model(task_of(tiny_bundle, **{option: "never" if option == "graphs" else "flash"}))
