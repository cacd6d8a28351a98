from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from mexma_export.checkpoint.checkpoint import Checkpoint, load_checkpoint
from mexma_export.checkpoint.scan import scan_weights, weights_sha256
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.checkpoint.tensors import INDEX, SINGLE, whole
from mexma_runtime.bundle.bundle import sha256_of
from mexma_runtime.errors import CheckpointError
from mexma_runtime.types import Pooling

Tensors = dict[str, NDArray[Any]]
QUERY = "encoder.layer.1.attention.self.query.weight"
BIAS = "encoder.layer.2.output.dense.bias"


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))


def load(folder: Path) -> Checkpoint:
    return load_checkpoint(resolve_source(str(folder)))


def edit_tensors(folder: Path, edit: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content), encoding="utf-8")


def problems_of(folder: Path) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


def values(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {name: whole(info).tobytes() for name, info in checkpoint.tensors.items()}


def test_a_whole_checkpoint(tiny_checkpoint: Path) -> None:
    checkpoint = load(tiny_checkpoint)
    assert (checkpoint.config.n_layers, checkpoint.config.max_tokens) == (3, 512)
    assert checkpoint.settings.pooling_mode is Pooling.CLS
    assert len(checkpoint.tensors) == 5 + 3 * 16
    query = load_file(tiny_checkpoint / SINGLE)[QUERY]
    assert np.array_equal(whole(checkpoint.tensors["layer.1.attention.query.weight"]), query)


def test_all_that_is_wrong_with_the_tensors_is_told_at_once(folder: Path) -> None:
    def damage(tensors: Tensors) -> None:
        del tensors["embeddings.LayerNorm.bias"]
        tensors["encoder.layer.3.output.dense.bias"] = np.zeros(64, np.float32)
        tensors["embeddings.word_embeddings.weight"] = tensors["embeddings.word_embeddings.weight"][:-1]
        tensors[QUERY] = tensors[QUERY].astype(np.int32)
        tensors[BIAS] = np.zeros((64, 1), np.int64)
        tensors["adapter.weight"] = np.zeros(1, np.float32)

    edit_tensors(folder, damage)
    edit_json(folder / "sentence_bert_config.json", max_seq_length=2)
    assert problems_of(folder) == [
        "sentence_bert_config.json: a limit of 2 tokens; the position table serves 3 to 512",
        "embeddings.word_embeddings.weight: expected [8192, 64] from config.json, got [8191, 64]",
        "embeddings.LayerNorm.bias: missing, expected [64]",
        f"{QUERY}: expected weights in F64, F32, F16, BF16, got I32",
        f"{BIAS}: expected [64] from config.json, got [64, 1]",
        f"{BIAS}: expected weights in F64, F32, F16, BF16, got I64",
        "adapter.weight: unexpected: the graph has no place for it",
        "encoder.layer.3.output.dense.bias: unexpected: the graph has no place for it",
    ]


def test_a_config_that_contradicts_the_weights_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=2, intermediate_size=256)
    problems = problems_of(folder)
    assert "encoder.layer.0.intermediate.dense.weight: expected [256, 64] from config.json, got [128, 64]" in problems
    assert f"{BIAS}: unexpected: the graph has no place for it" in problems


def test_all_that_is_wrong_with_the_config_is_told_at_once(folder: Path) -> None:
    edit_json(folder / "config.json", hidden_act="relu", position_embedding_type="relative_key", is_decoder=True)
    assert len(problems_of(folder)) == 3


@pytest.mark.parametrize("name", ["config.json", "modules.json", "tokenizer.json"])
def test_a_file_that_is_no_json_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=name):
        load(folder)


def test_a_folder_without_config_is_no_checkpoint(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert problems_of(folder) == ["no config.json: expected a checkpoint in the hub's layout"]


def test_weights_without_tensors_are_told_in_a_line(folder: Path) -> None:
    save_file({}, folder / SINGLE)
    assert problems_of(folder) == ["the files of the weights hold no tensors"]
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text('{"weight_map": {}}', encoding="utf-8")
    assert problems_of(folder) == ["the files of the weights hold no tensors"]


def test_a_tokenizer_that_the_runtime_cannot_use_is_refused(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    edit_json(path, model=tokenizer["model"] | {"unk_id": None})
    (problem,) = problems_of(folder)
    assert problem.startswith("tokenizer.json: ")
    assert "unk_id" in problem
    text: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
    between = {
        "type": "TemplateProcessing",
        "single": [text, {"SpecialToken": {"id": "<s>", "type_id": 0}}, text],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    edit_json(path, model=tokenizer["model"], post_processor=between)
    assert problems_of(folder) == ["tokenizer.json: it does not put special tokens around a text's own: not supported"]


def test_a_tokenizer_with_ids_beyond_the_embeddings_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", vocab_size=1000)
    edit_tensors(
        folder,
        lambda t: t.update({"embeddings.word_embeddings.weight": t["embeddings.word_embeddings.weight"][:1000]}),
    )
    with pytest.raises(CheckpointError, match=r"tokenizer.json: gives ids up to \d+, but config.json has 1000 embed"):
        load(folder)


def test_a_model_with_a_head_is_the_same_model(folder: Path) -> None:
    expected = values(load(folder))

    def add_head(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[f"roberta.{name}"] = tensors.pop(name)
        tensors["lm_head.bias"] = np.zeros(8192, np.float32)
        tensors["roberta.embeddings.position_ids"] = np.arange(514)[np.newaxis]

    edit_tensors(folder, add_head)
    assert values(load(folder)) == expected


def test_a_model_without_pooler_is_the_same_model(folder: Path) -> None:
    expected = values(load(folder))
    edit_tensors(folder, lambda t: [t.pop(f"pooler.dense.{name}") for name in ("weight", "bias")])
    assert values(load(folder)) == expected


def shard(folder: Path) -> list[Path]:
    """Split the weights into three parts with an index, as transformers does."""
    tensors = load_file(folder / SINGLE)
    parts = [folder / f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    names = sorted(tensors)
    weight_map = {name: parts[i % 3].name for i, name in enumerate(names)}
    for part in parts:
        save_file({name: tensors[name] for name in names if weight_map[name] == part.name}, part)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    (folder / SINGLE).unlink()
    return parts


def test_a_sharded_checkpoint_is_the_same_model(folder: Path) -> None:
    single = load(folder)
    expected, digest = values(single), weights_sha256(single)
    assert digest == sha256_of(folder / SINGLE) == scan_weights(single)
    parts = shard(folder)
    sharded = load(folder)
    assert values(sharded) == expected
    digest = weights_sha256(sharded)
    assert digest == scan_weights(sharded)
    parts[1].write_bytes(parts[1].read_bytes()[:-1] + b"\xff")
    assert weights_sha256(load(folder)) != digest


def test_what_a_damaged_part_lacks_is_not_the_only_thing_told(folder: Path) -> None:
    parts = shard(folder)
    parts[0].write_bytes(b"")
    problems = problems_of(folder)
    assert problems[0].startswith(f"{parts[0].name}: cannot be read as safetensors")
    assert any("missing" in problem for problem in problems[1:])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_sixteen_bit_weights_widen_without_loss(folder: Path, dtype: Any) -> None:
    before = load_file(folder / SINGLE)[QUERY]
    edit_tensors(folder, lambda t: t.update({name: array.astype(dtype) for name, array in t.items()}))
    checkpoint = load(folder)
    read = whole(checkpoint.tensors["layer.1.attention.query.weight"])
    assert read.dtype == np.float32
    assert np.array_equal(read, before.astype(dtype).astype(np.float32))


def test_float64_weights_are_rounded_to_fp32(folder: Path) -> None:
    expected = load_file(folder / SINGLE)[QUERY]
    edit_tensors(folder, lambda t: t.update({name: array.astype(np.float64) * (1 + 1e-9) for name, array in t.items()}))
    read = whole(load(folder).tensors["layer.1.attention.query.weight"])
    assert read.dtype == np.float32
    assert np.array_equal(read, (expected.astype(np.float64) * (1 + 1e-9)).astype(np.float32))
    edit_tensors(folder, lambda t: t[QUERY].__setitem__((0, 0), 1e39))
    with pytest.raises(CheckpointError, match=f"{QUERY}: holds NaN or infinite weights"):
        scan_weights(load(folder))


@pytest.mark.parametrize("prefix", ["", "roberta."])
def test_layer_norms_by_their_old_names_are_the_same_model(folder: Path, prefix: str) -> None:
    expected = values(load(folder))

    def rename(tensors: Tensors) -> None:
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[prefix + old] = tensors.pop(name)

    edit_tensors(folder, rename)
    assert values(load(folder)) == expected


def test_a_layer_norm_by_both_names_is_refused(folder: Path) -> None:
    name = "encoder.layer.1.output.LayerNorm.weight"
    edit_tensors(folder, lambda t: t.update({name.replace("weight", "gamma"): t[name] + 1}))
    (problem,) = problems_of(folder)
    assert problem == (
        "encoder.layer.1.output.LayerNorm.weight: encoder.layer.1.output.LayerNorm.gamma is another name for it: "
        "expected one of them"
    )


def test_nan_and_infinity_are_refused_by_name(folder: Path) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors[QUERY][3, 5] = np.nan
        tensors[BIAS][0] = -np.inf
        tensors["pooler.dense.bias"][0] = np.nan  # no part of the vector

    edit_tensors(folder, spoil)
    with pytest.raises(CheckpointError) as caught:
        scan_weights(load(folder))
    assert caught.value.problems == [f"{name}: holds NaN or infinite weights" for name in (QUERY, BIAS)]


def test_weights_over_fp16s_range_are_refused_by_name(folder: Path) -> None:
    edit_tensors(folder, lambda t: t[QUERY].__setitem__((0, 0), -65504))
    scan_weights(load(folder), needs_fp16=True)
    edit_tensors(folder, lambda t: (t[QUERY].__setitem__((0, 0), -65505), t[BIAS].__setitem__(0, 1e9)))
    scan_weights(load(folder))
    with pytest.raises(CheckpointError) as caught:
        scan_weights(load(folder), needs_fp16=True)
    assert caught.value.problems == [
        f"{QUERY}: its largest magnitude 65505 is over fp16's 65504: export fp32 instead",
        f"{BIAS}: its largest magnitude 1e+09 is over fp16's 65504: export fp32 instead",
    ]


def test_the_scan_reports_how_far_it_is(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    scan_weights(load(folder), progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert len({total for _, total in calls}) == 1
    assert calls[-1][0] == calls[-1][1]
