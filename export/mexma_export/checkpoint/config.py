"""config.json of a checkpoint: the architecture, and every reason why its graph could not be written faithfully."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mexma_export.checkpoint.settings_keys import CONFIG, judge_keys
from mexma_runtime.bundle.manifest import PositionScheme


class Family(StrEnum):
    """Architectures that the graph is written for."""

    XLM_ROBERTA = "xlm-roberta"
    BERT = "bert"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The numbers that define the graph."""

    family: Family
    n_layers: int
    hidden_size: int
    n_heads: int
    ffn_size: int
    vocab_size: int
    n_positions: int
    """Rows of the position table; the first `first_position` of them serve no token."""
    n_token_types: int
    padding_id: int
    layer_norm_epsilon: float

    @property
    def position_scheme(self) -> PositionScheme:
        """How position ids follow from token ids."""
        return PositionScheme.FROM_ZERO if self.family is Family.BERT else PositionScheme.AFTER_PADDING

    @property
    def first_position(self) -> int:
        """Position id of the first token."""
        return 0 if self.family is Family.BERT else self.padding_id + 1

    @property
    def max_tokens(self) -> int:
        """The longest input that the position table serves: 512 for XLM-R's 514 rows."""
        return self.n_positions - self.first_position

    @property
    def head_size(self) -> int:
        """Numbers of one attention head."""
        return self.hidden_size // self.n_heads


_FAMILIES = {
    "xlm-roberta": Family.XLM_ROBERTA,
    "roberta": Family.XLM_ROBERTA,
    "camembert": Family.XLM_ROBERTA,
    "bert": Family.BERT,
}
"""model_type of config.json -> family. RoBERTa and CamemBERT have the same graph."""

_SIZES = {
    "num_hidden_layers": "n_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "n_heads",
    "intermediate_size": "ffn_size",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "n_positions",
    "type_vocab_size": "n_token_types",
}
"""Field of config.json -> ours."""


def read_config(config: dict[str, Any]) -> tuple[ModelConfig | None, list[str]]:
    """The architecture that config.json describes, and all problems found; the former is None where one is fatal."""
    problems: list[str] = []
    model_type = config.get("model_type")
    family = _FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        problems.append(f"config.json: model_type {model_type!r} is not written here (known: {', '.join(_FAMILIES)})")

    problems += judge_keys("config.json", config, CONFIG)[0]
    sizes: dict[str, int] = {}
    for field, name in _SIZES.items():
        value = config.get(field)
        if type(value) is int and value > 0:
            sizes[name] = value
        else:
            problems.append(f"config.json: {field}: expected a positive integer, got {value!r}")
    padding_id = config.get("pad_token_id", 0 if family is Family.BERT else 1)
    if family is Family.BERT and (padding_id is None or (type(padding_id) is int and padding_id < 0)):
        padding_id = 0  # no vector of BERT depends on it: its positions do not
    if type(padding_id) is not int or not 0 <= padding_id < sizes.get("vocab_size", 1 << 62):
        problems.append(f"config.json: pad_token_id: expected an id of the vocabulary, got {padding_id!r}")
    epsilon = config.get("layer_norm_eps", 1e-12)
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        problems.append(f"config.json: layer_norm_eps: expected a small positive number, got {epsilon!r}")
    hidden, heads = sizes.get("hidden_size"), sizes.get("n_heads")
    if hidden and heads and hidden % heads:
        problems.append(f"config.json: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    if problems or family is None:
        return None, problems
    result = ModelConfig(family=family, padding_id=padding_id, layer_norm_epsilon=epsilon, **sizes)
    if result.max_tokens < 1:
        problems.append(f"config.json: {result.n_positions} positions leave none for a token after padding's")
        return None, problems
    return result, problems
