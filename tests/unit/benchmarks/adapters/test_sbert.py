from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from mexma_benchmarks.adapters.protocol import Task
from mexma_benchmarks.adapters.sbert import open_model, prepare
from mexma_export.parity.reference import load_reference
from mexma_runtime.types import Pooling

TEXTS = ["A short one.", "longer " * 30, "", "Ein Satz auf Deutsch.", "cut " * 900]


def torch_task(checkpoint: Path, pooling: Pooling, *, is_normalized: bool) -> Task:
    return Task(
        checkpoint=str(checkpoint),
        tokenizer=str(checkpoint),
        pooling=pooling,
        is_normalized=is_normalized,
        max_tokens=64,
        n_threads=1,
        device="cpu",
        folder="",
        first_text="",
        options={"backend": "torch", "int8": False},
    )


@pytest.mark.parametrize("pooling", list(Pooling))
@pytest.mark.parametrize("is_normalized", [False, True])
@pytest.mark.parametrize("fixture", ["tiny_checkpoint", "tiny_bert_checkpoint"])
def test_it_pools_as_the_task_says_whatever_the_files_say(
    request: pytest.FixtureRequest, fixture: str, pooling: Pooling, is_normalized: bool
) -> None:
    checkpoint: Path = request.getfixturevalue(fixture)
    model = open_model(torch_task(checkpoint, pooling, is_normalized=is_normalized))
    ids = [[0, 7, 8, 9, 2], [0, 11, 12, 13, 2]]

    vectors, of_ids = model.encode(TEXTS), model.encode_ids(ids)

    with load_reference(checkpoint, pooling=pooling, normalize=is_normalized, max_tokens=64) as reference:
        np.testing.assert_allclose(vectors, reference.encode(TEXTS), atol=1e-5)
        np.testing.assert_allclose(of_ids, reference.encode_ids(ids), atol=1e-5)
    assert vectors.dtype == of_ids.dtype == np.float32
    assert model.versions["sentence-transformers"]


def test_attention_and_precision_are_as_asked_for(tiny_checkpoint: Path) -> None:
    task = torch_task(tiny_checkpoint, Pooling.CLS, is_normalized=False)
    model = open_model(replace(task, options=task.options | {"attention": "eager", "dtype": "fp16"}))

    inner = model._model[0].model  # type: ignore[attr-defined]
    assert (inner.config._attn_implementation, inner.dtype) == ("eager", torch.float16)
    assert model.provider == "cpu, torch, eager, fp16"
    with load_reference(tiny_checkpoint, pooling=Pooling.CLS, normalize=False, max_tokens=64) as reference:
        np.testing.assert_allclose(model.encode(TEXTS), reference.encode(TEXTS), atol=2e-2)


def test_a_backend_that_is_not_installed_says_what_to_install(tiny_checkpoint: Path, tmp_path: Path) -> None:
    if find_spec("optimum"):
        pytest.skip("optimum is installed")
    task = torch_task(tiny_checkpoint, Pooling.CLS, is_normalized=False)
    options = {"backend": "openvino", "int8": False}

    with pytest.raises(Exception, match=r"pip install .*sentence-transformers\[openvino\]"):
        prepare(replace(task, folder=str(tmp_path), options=options))
