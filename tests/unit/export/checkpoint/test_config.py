from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma_export.checkpoint.config import Family, read_config
from mexma_runtime.bundle.manifest import PositionScheme

XLM_R: dict[str, Any] = {
    "model_type": "xlm-roberta",
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "pad_token_id": 1,
    "type_vocab_size": 1,
    "vocab_size": 250002,
}
BERT = XLM_R | {"model_type": "bert", "pad_token_id": 0, "type_vocab_size": 2, "max_position_embeddings": 512}


def problem_of(**changes: Any) -> str:
    config, problems = read_config(XLM_R | changes)
    assert config is None
    assert len(problems) == 1
    return problems[0]


def test_xlm_roberta_serves_512_tokens_with_514_rows() -> None:
    config, problems = read_config(XLM_R)
    assert problems == []
    assert config is not None
    assert config.family is Family.XLM_ROBERTA
    assert (config.first_position, config.max_tokens, config.head_size) == (2, 512, 64)
    assert config.position_scheme is PositionScheme.AFTER_PADDING


def test_bert_counts_from_zero() -> None:
    config, problems = read_config(BERT)
    assert problems == []
    assert config is not None
    assert config.family is Family.BERT
    assert (config.first_position, config.max_tokens) == (0, 512)
    assert config.position_scheme is PositionScheme.FROM_ZERO


@pytest.mark.parametrize("model_type", ["roberta", "camembert"])
def test_relatives_of_xlm_roberta_have_its_graph(model_type: str) -> None:
    config, _ = read_config(XLM_R | {"model_type": model_type})
    assert config is not None
    assert config.family is Family.XLM_ROBERTA


def test_padding_has_the_familys_default_id() -> None:
    for source, expected in ((XLM_R, 1), (BERT, 0)):
        config, _ = read_config({key: value for key, value in source.items() if key != "pad_token_id"})
        assert config is not None
        assert config.padding_id == expected


@pytest.mark.parametrize("padding_id", [None, -1])
def test_bert_needs_no_padding(padding_id: int | None) -> None:
    config, problems = read_config(BERT | {"pad_token_id": padding_id})
    assert problems == []
    assert config is not None
    assert config.padding_id == 0
    assert read_config(BERT | {"pad_token_id": BERT["vocab_size"]})[0] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mpnet"}, "model_type 'mpnet' is not written here (known: xlm-roberta, roberta, "),
        ({"model_type": ["bert"]}, "model_type ['bert'] is not written here"),
        (
            {"hidden_act": "gelu_new"},
            "hidden_act 'gelu_new': expected 'gelu' or 'gelu_python': only the exact (erf) form",
        ),
        ({"position_embedding_type": "relative_key_query"}, "position_embedding_type 'relative_key_query'"),
        ({"rope_theta": 10000.0}, "rope_theta 10000.0: expected {}: only absolute positions are written"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling {'type': 'linear'}: expected {}"),
        ({"rope_parameters": {"rope_theta": 10000.0}}, "rope_parameters {'rope_theta': 10000.0}: expected {}"),
        ({"is_decoder": True}, "is_decoder True: expected False: only encoders are written"),
        ({"is_causal": True}, "is_causal True: expected False: only encoders are written"),
        ({"model_name": "camembertv2-base"}, "model_name 'camembertv2-base': expected null: transformers may choose"),
        ({"hidden_act": None}, "hidden_act None: expected 'gelu' or 'gelu_python'"),
        ({"pad_token_id": -1}, "pad_token_id: expected an id of the vocabulary, got -1"),
        ({"add_cross_attention": True}, "add_cross_attention True: expected False"),
        ({"hidden_size": 1000}, "hidden_size 1000 is not a multiple of num_attention_heads 16"),
        ({"hidden_size": 0}, "hidden_size: expected a positive integer, got 0"),
        ({"num_hidden_layers": "24"}, "num_hidden_layers: expected a positive integer, got '24'"),
        ({"vocab_size": True}, "vocab_size: expected a positive integer, got True"),
        ({"intermediate_size": 4096.0}, "intermediate_size: expected a positive integer, got 4096.0"),
        ({"type_vocab_size": None}, "type_vocab_size: expected a positive integer, got None"),
        ({"pad_token_id": 250002}, "pad_token_id: expected an id of the vocabulary, got 250002"),
        ({"pad_token_id": None}, "pad_token_id: expected an id of the vocabulary, got None"),
        ({"layer_norm_eps": "1e-5"}, "layer_norm_eps: expected a small positive number, got '1e-5'"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps: expected a small positive number, got 0.0"),
        ({"max_position_embeddings": 2}, "2 positions leave none for a token"),
    ],
    ids=str,
)
def test_what_is_not_written_is_refused(changes: dict[str, Any], message: str) -> None:
    assert f"config.json: {message}" in problem_of(**changes)


def test_all_problems_are_found_at_once() -> None:
    _, problems = read_config({"hidden_act": "relu", "position_embedding_type": "relative_key", "rope_theta": 1.0})
    assert len(problems) == 4 + 7
    assert problems[-1] == "config.json: type_vocab_size: expected a positive integer, got None"


@given(
    st.dictionaries(
        st.sampled_from([*XLM_R, "is_decoder", "rope_theta", "position_embedding_type"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
            lambda values: st.lists(values, max_size=2) | st.dictionaries(st.text(max_size=3), values, max_size=2),
            max_leaves=3,
        ),
        max_size=3,
    )
)
def test_whatever_the_values_there_is_a_config_or_a_problem(changes: dict[str, Any]) -> None:
    config, problems = read_config(XLM_R | changes)
    assert (config is None) == bool(problems)
    if config is not None:
        assert config.max_tokens >= 1
        assert config.head_size * config.n_heads == config.hidden_size
