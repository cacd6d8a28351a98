from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

from mexma_export.checkpoint.config import Family
from mexma_export.checkpoint.standin import STANDINS
from mexma_export.checkpoint.standin_weights import Fill, Plant, choose_outliers, file_size, fills, write_weights

MEXMA_BYTES = 2_235_408_584
"""Size of facebook/MEXMA's model.safetensors."""


def test_full_size_is_the_real_size_to_the_byte() -> None:
    mexma = STANDINS["mexma"]
    assert file_size(fills(mexma.model, has_pooler=mexma.has_pooler)) == MEXMA_BYTES


@pytest.mark.parametrize("name", STANDINS)
def test_tensors_are_those_of_transformers(name: str) -> None:
    standin = STANDINS[name]
    model = standin.model
    sizes: dict[str, Any] = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "intermediate_size": model.ffn_size,
        "max_position_embeddings": model.n_positions,
        "type_vocab_size": model.n_token_types,
    }
    with torch.device("meta"):
        if model.family is Family.BERT:
            theirs = BertModel(BertConfig(**sizes), add_pooling_layer=standin.has_pooler).state_dict()
        else:
            theirs = XLMRobertaModel(XLMRobertaConfig(**sizes), add_pooling_layer=standin.has_pooler).state_dict()
    ours = fills(model, has_pooler=standin.has_pooler)
    assert {fill.name: fill.shape for fill in ours} == {key: tuple(value.shape) for key, value in theirs.items()}


def test_the_file_is_what_safetensors_would_write(tmp_path: Path) -> None:
    tensors = fills(STANDINS["tiny"].model, has_pooler=True)
    progress: list[tuple[int, int]] = []
    write_weights(tmp_path / "ours", tensors, seed=3, progress=lambda *seen: progress.append(seen))
    save_file(load_file(tmp_path / "ours"), tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert progress == sorted(progress)
    assert progress[-1] == (file_size(tensors), file_size(tensors))


def test_tensors_of_many_chunks(tmp_path: Path) -> None:
    plant = Plant(row=8000, scale=0.0, shift=7.0)
    fill = Fill(name="table", shape=(9000, 1024), std=0.5, mean=0.25, zero_row=5000, weak_columns=(3,), plants=(plant,))
    write_weights(tmp_path / "file", [fill], seed=0)
    table = load_file(tmp_path / "file")["table"]
    assert len({row.tobytes() for row in table}) == 9000
    assert not table[5000].any()
    assert (table[8000] == 7).all()
    ordinary = np.delete(np.delete(table, [5000, 8000], axis=0), 3, axis=1)
    assert ordinary.mean() == pytest.approx(0.25, abs=1e-3)
    assert ordinary.std() == pytest.approx(0.5, abs=1e-3)
    assert table[:5000, 3].std() == pytest.approx(0.5 / 20, rel=0.1)


@pytest.mark.parametrize(("name", "padded"), [("tiny", ["position", "word"]), ("tiny-bert", ["word"])])
def test_no_tensor_is_constant_and_only_padding_is_zero(name: str, padded: list[str], tmp_path: Path) -> None:
    write_weights(tmp_path / "file", fills(STANDINS[name].model, has_pooler=True), seed=0)
    tensors = load_file(tmp_path / "file")
    zeros = {key: np.flatnonzero(~value.reshape(len(value), -1).any(axis=1)) for key, value in tensors.items()}
    assert {key: rows.tolist() for key, rows in zeros.items() if rows.size} == {
        f"embeddings.{table}_embeddings.weight": [1] for table in padded
    }
    for key, value in tensors.items():
        assert np.isfinite(value).all()
        assert value.std() > 0.005
        assert value.mean() == pytest.approx(float("LayerNorm.weight" in key), abs=0.05)


def test_seeds_share_no_tensor(tmp_path: Path) -> None:
    tensors = fills(STANDINS["tiny"].model, has_pooler=True)
    for seed in (0, 1):
        write_weights(tmp_path / str(seed), tensors, seed=seed)
    first, second = load_file(tmp_path / "0"), load_file(tmp_path / "1")
    assert not any(np.array_equal(first[key], second[key]) for key in first)
    assert len({value.tobytes() for value in first.values()}) == len(first)


def test_outliers_belong_to_the_seed() -> None:
    small = STANDINS["small"].model
    assert choose_outliers(small, 0) == choose_outliers(small, 0)
    assert choose_outliers(small, 0) != choose_outliers(small, 1)
    assert len(choose_outliers(STANDINS["mexma"].model, 0).dims) == 3
    assert [len(channels) for channels in choose_outliers(STANDINS["mexma"].model, 0).channels] == [4] * 24
