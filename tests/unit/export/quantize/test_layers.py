from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from mexma_export.checkpoint.checkpoint import Checkpoint, load_checkpoint
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.graph.encoder import layer_taps
from mexma_export.parity.reference import load_reference
from mexma_export.quantize.calibration import Calibration, load_calibration
from mexma_export.quantize.layers import embed_tokens, layer_tensors, open_layer
from mexma_runtime.errors import MissingDependencyError
from mexma_runtime.types import Pooling


@pytest.mark.parametrize("family", ["tiny_checkpoint", "tiny_bert_checkpoint"])
def test_layer_by_layer_gives_what_transformers_gives(
    family: str, few_texts: Path, request: pytest.FixtureRequest
) -> None:
    """CLS pooling computes one row of the last layer, mean pooling all."""
    folder: Path = request.getfixturevalue(family)
    checkpoint = load_checkpoint(resolve_source(str(folder)))
    pooling: Pooling = checkpoint.settings.pooling_mode
    calibration = load_calibration(checkpoint, few_texts)
    found = np.full((calibration.n_texts, 64), np.nan, dtype=np.float32)
    layers = [open_layer(checkpoint, n, layer_tensors(checkpoint, n), n_threads=1) for n in range(3)]
    for rows, embedded in embed_tokens(checkpoint, calibration):
        hidden = embedded
        for n, layer in enumerate(layers):
            taps = layer(hidden)
            assert tuple(taps) == layer_taps(n)
            hidden = taps[layer_taps(n)[-1]]
        assert hidden.shape[1] == (1 if pooling is Pooling.CLS else embedded.shape[1])
        found[rows] = hidden.mean(axis=1)
    few = np.arange(0, calibration.n_texts, 20)
    with load_reference(folder, pooling=pooling, normalize=False, max_tokens=512) as reference:
        expected = reference.encode_ids(calibration.ragged.take(few), batch_size=1)
    assert np.abs(found[few] - expected).max() < 1e-4
    assert np.all(np.isfinite(found))


def test_taps_are_what_products_read(checkpoint: Checkpoint, calibration: Calibration) -> None:
    _, hidden = next(embed_tokens(checkpoint, calibration))
    tensors = layer_tensors(checkpoint, 0)
    context, attended, inner, out = open_layer(checkpoint, 0, tensors, n_threads=1)(hidden).values()
    assert context.shape == attended.shape == out.shape == hidden.shape
    assert inner.shape == (*hidden.shape[:2], checkpoint.config.ffn_size)
    path = "layer.0.ffn.down"
    total = inner @ tensors[f"{path}.weight"] + tensors[f"{path}.bias"] + attended
    normed = (total - total.mean(axis=-1, keepdims=True)) / np.sqrt(total.var(axis=-1, keepdims=True) + 1e-5)
    expected = normed * tensors["layer.0.ffn.norm.gamma"] + tensors["layer.0.ffn.norm.beta"]
    assert np.abs(expected - out).max() < 1e-4


def test_without_onnxruntime_the_extra_is_named(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"calibrating int8.*mexma-runtime\[cpu\]"):
        open_layer(checkpoint, 0, {}, n_threads=1)
