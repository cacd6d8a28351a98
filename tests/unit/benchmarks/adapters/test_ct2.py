"""Runs where ctranslate2 is installed beside the project, which needs no peer for its own tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mexma_benchmarks.adapters.ct2 import open_model, prepare
from mexma_benchmarks.adapters.protocol import Task
from mexma_export.parity.reference import load_reference
from mexma_runtime.types import Pooling

pytest.importorskip("ctranslate2")

TEXTS = ["one", "", "a text that is cut " * 20, *(f"sentence {'of words ' * (i % 7)}{i}" for i in range(40))]


@pytest.mark.parametrize(("checkpoint", "pooling"), [("tiny_checkpoint", "cls"), ("tiny_bert_checkpoint", "mean")])
@pytest.mark.parametrize(("compute_type", "tolerance"), [("float32", 1e-6), ("int8", 5e-3)])
def test_vectors_are_those_of_the_reference(
    checkpoint: str,
    pooling: str,
    compute_type: str,
    tolerance: float,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    folder: Path = request.getfixturevalue(checkpoint)
    task = Task(
        checkpoint=str(folder),
        tokenizer=str(folder),
        pooling=pooling,
        is_normalized=True,
        max_tokens=24,
        n_threads=1,
        device="cpu",
        folder=str(tmp_path),
        first_text="one",
        options={"compute_type": compute_type},
    )

    prepare(task)
    model = open_model(task)
    vectors = model.encode(TEXTS)

    with load_reference(folder, pooling=Pooling(pooling), normalize=True, max_tokens=24) as reference:
        expected = reference.encode(TEXTS)
    cosines = (vectors * expected).sum(axis=1)
    assert cosines.min() > 1 - tolerance, cosines
    np.testing.assert_allclose(model.encode_ids([[0, 7, 2]] * 2)[0], model.encode_ids([[0, 7, 2]])[0], atol=1e-5)
    assert compute_type in model.provider
