from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mexma_export.checkpoint.config import read_config
from mexma_export.checkpoint.naming import IGNORED, expected_tensors, find_prefix, match_tensors
from mexma_export.checkpoint.tensors import TensorInfo

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 10,
}
MODELS = [
    ("XLMRobertaModel", "XLMRobertaConfig", ""),
    ("XLMRobertaForMaskedLM", "XLMRobertaConfig", "roberta."),
    ("XLMRobertaForSequenceClassification", "XLMRobertaConfig", "roberta."),
    ("RobertaForQuestionAnswering", "RobertaConfig", "roberta."),
    ("CamembertForTokenClassification", "CamembertConfig", "roberta."),
    ("BertModel", "BertConfig", ""),
    ("BertForPreTraining", "BertConfig", "bert."),
]


def make(model: str, config: str) -> Any:
    with torch.device("meta"):
        return getattr(transformers, model)(getattr(transformers, config)(**SIZES))


@pytest.mark.parametrize(("model_name", "config_name", "prefix"), MODELS)
def test_the_table_names_every_tensor_of_transformers_models(model_name: str, config_name: str, prefix: str) -> None:
    model = make(model_name, config_name)
    config, problems = read_config(model.config.to_dict())
    assert problems == []
    assert config is not None
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    expected = expected_tensors(config)
    assert find_prefix(theirs, expected) == prefix
    for tensor in expected:
        assert theirs.pop(prefix + tensor.theirs) == tensor.shape
    assert [name for name in theirs if not IGNORED.fullmatch(name.removeprefix(prefix))] == []
    assert len({tensor.ours for tensor in expected}) == len(expected) == 5 + 2 * 16


def test_the_prefix_is_found_whichever_tensor_is_missing() -> None:
    config, _ = read_config(make("XLMRobertaModel", "XLMRobertaConfig").config.to_dict())
    assert config is not None
    expected = expected_tensors(config)
    for prefix in ("", "roberta.", "0.auto_model.", "encoder."):
        for missing in expected:
            names = {prefix + tensor.theirs for tensor in expected if tensor is not missing}
            assert find_prefix(names, expected) == prefix
    assert find_prefix({"lm_head.bias"}, expected) == ""


@pytest.mark.parametrize(("config_name", "own"), [("XLMRobertaConfig", "roberta."), ("BertConfig", "bert.")])
def test_a_prefix_that_transformers_does_not_read_is_one_problem(config_name: str, own: str) -> None:
    config, _ = read_config(make(config_name.replace("Config", "Model"), config_name).config.to_dict())
    assert config is not None
    for prefix in ("", "bert.", "roberta.", "xlm_roberta.", "model.", "module.", "0.auto_model.", f"module.{own}"):
        names = [prefix + tensor.theirs for tensor in expected_tensors(config)]
        found = {
            name: TensorInfo(name=name, shape=tensor.shape, dtype="F32", file=Path())
            for name, tensor in zip(names, expected_tensors(config), strict=True)
        }
        matched, problems = match_tensors(config, found)
        if prefix in ("", own):
            assert (len(matched), problems) == (len(names), [])
        else:
            (problem,) = problems
            assert problem.startswith(f"the encoder's tensors stand under {prefix!r}, and transformers reads them bare")
            assert f"{own!r} alone" in problem
            assert matched == {}


def test_nothing_of_the_encoder_is_ignored() -> None:
    config, _ = read_config(make("BertModel", "BertConfig").config.to_dict())
    assert config is not None
    assert [tensor.theirs for tensor in expected_tensors(config) if IGNORED.fullmatch(tensor.theirs)] == []
    for name in ("encoder.layer.0.adapter.weight", "embeddings.extra", "pooler", "encoder.pooler.dense.weight"):
        assert not IGNORED.fullmatch(name)
