from __future__ import annotations

from typing import Any

import pytest
import transformers

from mexma_export.checkpoint import settings_keys
from mexma_export.checkpoint.settings_keys import (
    CONFIG,
    NO_EFFECT,
    NOT_NULL,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    TOKENIZER_OPTIONS,
    TRANSFORMER,
    Rule,
    judge_keys,
)
from mexma_runtime.bundle.strict_json import Check

TABLES = {
    name: table for name, table in vars(settings_keys).items() if name.isupper() and isinstance(table, dict) and table
}
TOKEN = {"content": "<a>", "lstrip": True}
TYPED = TOKEN | {"__type": "AddedToken"}
CHECKED = [(name, key) for name, table in TABLES.items() for key, rule in table.items() if isinstance(rule, Check)]


@pytest.mark.parametrize(("name", "key"), CHECKED)
def test_a_value_that_changes_vectors_is_refused_by_name(name: str, key: str) -> None:
    problems, warnings = judge_keys("FILE", {key: ["something else", 5]}, TABLES[name], prefix="at.")
    (problem,) = problems
    assert problem.startswith(f"FILE: at.{key} ['something else', 5]: expected ")
    assert warnings == []
    assert bool(judge_keys("FILE", {key: None}, TABLES[name])[0]) == (key in NOT_NULL)


def test_keys_without_effect_and_heeded_ones_pass_and_unknown_ones_are_named() -> None:
    for table in TABLES.values():
        content = {key: "anything" for key, rule in table.items() if not isinstance(rule, Check)}
        assert judge_keys("FILE", content, table) == ([], [])
    problems, warnings = judge_keys("FILE", {"nobody_knows": 1}, CONFIG)
    assert problems == []
    assert [warning.split(": unknown")[0] for warning in warnings] == ["FILE: nobody_knows"]
    _, (warning,) = judge_keys("FILE", {"red\x1b[31m\ud800": 1}, CONFIG)
    assert warning.startswith(r"FILE: 'red\x1b[31m\ud800': unknown")


@pytest.mark.parametrize("name", ["XLMRobertaConfig", "RobertaConfig", "CamembertConfig", "BertConfig"])
def test_what_transformers_writes_is_known(name: str) -> None:
    content = getattr(transformers, name)().to_dict()
    assert judge_keys("config.json", content, CONFIG) == ([], [])


@pytest.mark.parametrize(
    ("table", "content"),
    [
        (TOKENIZER_CONFIG, {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}),
        (TOKENIZER_CONFIG, {"auto_map": {}, "init_inputs": [], "vocab_file": "/vocab.txt", "add_bos_token": True}),
        (
            TOKENIZER_CONFIG,
            {"mask_token": TYPED, "extra_special_tokens": ["<a>", TYPED], "image_token": {"content": 5}},
        ),
        (TOKENIZER_CONFIG, {"extra_special_tokens": {"image_token": TYPED}, "additional_special_tokens": []}),
        (TOKENIZER_CONFIG, {"added_tokens_decoder": {"0": {"content": "<a>", "special": True}}}),
        (SPECIAL_TOKENS_MAP, {"mask_token": TOKEN, "image_token": TOKEN, "additional_special_tokens": [TOKEN, "<b>"]}),
        (TRANSFORMER, {"model_args": {"add_pooling_layer": False, "use_safetensors": True, "device_map": "cpu"}}),
        (CONFIG, {"auto_map": {}, "is_causal": False}),
        (TRANSFORMER, {"model_args": {"attn_implementation": "eager", "token": "x"}, "config_args": {}}),
        (
            TRANSFORMER,
            {"processing_kwargs": {"text": {}, "image": {"size": 3}}, "transformer_task": "feature-extraction"},
        ),
        (
            TRANSFORMER,
            {
                "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
                "module_output_name": "token_embeddings",
            },
        ),
        (CONFIG, {"pruned_heads": {}, "chunk_size_feed_forward": 0, "is_decoder": False, "hidden_act": "gelu_python"}),
    ],
)
def test_values_that_change_nothing_pass(table: dict[str, Rule], content: dict[str, Any]) -> None:
    assert judge_keys("FILE", content, table) == ([], [])


@pytest.mark.parametrize(
    ("table", "content"),
    [
        (TOKENIZER_CONFIG, {"model_input_names": ["input_ids"]}),
        (TOKENIZER_CONFIG, {"init_inputs": [{}]}),
        (TOKENIZER_CONFIG, {"cls_token": TOKEN}),
        (TOKENIZER_CONFIG, {"cls_token": "\ud800"}),
        (TOKENIZER_CONFIG, {"image_token": "\ud800"}),
        (TOKENIZER_CONFIG, {"mask_token": TYPED | {"lstrip": 1}}),
        (TOKENIZER_CONFIG, {"mask_token": TYPED | {"color": True}}),
        (TOKENIZER_CONFIG, {"additional_special_tokens": "<a>"}),
        (TOKENIZER_CONFIG, {"additional_special_tokens": {"image_token": "<a>"}}),
        (TOKENIZER_CONFIG, {"extra_special_tokens": 5}),
        (TOKENIZER_CONFIG, {"extra_special_tokens": [TOKEN]}),
        (TOKENIZER_CONFIG, {"extra_special_tokens": {"cls_token": "<a>"}}),
        (TOKENIZER_CONFIG, {"added_tokens_decoder": []}),
        (TOKENIZER_CONFIG, {"added_tokens_decoder": {"a": TOKEN}}),
        (TOKENIZER_CONFIG, {"added_tokens_decoder": {"0": "<a>"}}),
        (TOKENIZER_CONFIG, {"added_tokens_decoder": {"0": None}}),
        *((TOKENIZER_CONFIG, {"strip_accents": value}) for value in ("false", 1, 0)),
        (TOKENIZER_OPTIONS, {"add_bos_token": None}),
        (TOKENIZER_OPTIONS, {"add_eos_token": False}),
        (TOKENIZER_OPTIONS, {"tokenizer_type": "bert"}),
        (TOKENIZER_OPTIONS, {"tokenizer_class": "BertTokenizer"}),
        (SPECIAL_TOKENS_MAP, {"extra_special_tokens": 5}),
        (SPECIAL_TOKENS_MAP, {"padding_side": "left"}),
        (TRANSFORMER, {"model_args": {"use_safetensors": False}}),
        (TOKENIZER_CONFIG, {"add_special_tokens": False}),
        (TRANSFORMER, {"model_args": {"variant": "fp16"}}),
        (TRANSFORMER, {"config_args": {"hidden_act": "relu"}}),
        (TRANSFORMER, {"processing_kwargs": {"common": {"max_length": 16}}}),
        (TRANSFORMER, {"processing_kwargs": {"text": {"add_special_tokens": False}}}),
        (TRANSFORMER, {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}}),
        (TRANSFORMER, {"modality_config": {"message": {}}}),
        (CONFIG, {"auto_map": {"AutoModel": "modeling.Model"}}),
    ],
)
def test_values_that_change_vectors_are_refused(table: dict[str, Rule], content: dict[str, Any]) -> None:
    problems, _ = judge_keys("FILE", content, table)
    assert len(problems) == 1
    assert NO_EFFECT not in [table.get(key) for key in content]
