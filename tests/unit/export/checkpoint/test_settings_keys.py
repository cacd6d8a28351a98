from __future__ import annotations

from typing import Any

import pytest
import transformers

from mexma_export.checkpoint import settings_keys
from mexma_export.checkpoint.settings_keys import CONFIG, NO_EFFECT, TOKENIZER_CONFIG, TRANSFORMER, Rule, judge_keys
from mexma_runtime.bundle.strict_json import Check

TABLES = {
    name: table for name, table in vars(settings_keys).items() if name.isupper() and isinstance(table, dict) and table
}
CHECKED = [(name, key) for name, table in TABLES.items() for key, rule in table.items() if isinstance(rule, Check)]


@pytest.mark.parametrize(("name", "key"), CHECKED)
def test_a_value_that_changes_vectors_is_refused_by_name(name: str, key: str) -> None:
    problems, warnings = judge_keys("FILE", {key: "something else"}, TABLES[name], prefix="at.")
    (problem,) = problems
    assert problem.startswith(f"FILE: at.{key} 'something else': expected ")
    assert warnings == []
    assert judge_keys("FILE", {key: None}, TABLES[name]) == ([], [])


def test_keys_without_effect_and_heeded_ones_pass_and_unknown_ones_are_named() -> None:
    for table in TABLES.values():
        content = {key: "anything" for key, rule in table.items() if not isinstance(rule, Check)}
        assert judge_keys("FILE", content, table) == ([], [])
    problems, warnings = judge_keys("FILE", {"nobody_knows": 1}, CONFIG)
    assert problems == []
    assert [warning.split(": unknown")[0] for warning in warnings] == ["FILE: nobody_knows"]


@pytest.mark.parametrize("name", ["XLMRobertaConfig", "RobertaConfig", "CamembertConfig", "BertConfig"])
def test_what_transformers_writes_is_known(name: str) -> None:
    content = getattr(transformers, name)().to_dict()
    assert judge_keys("config.json", content, CONFIG) == ([], [])


@pytest.mark.parametrize(
    ("table", "content"),
    [
        (TOKENIZER_CONFIG, {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}),
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
    assert NO_EFFECT not in [table[key] for key in content]
