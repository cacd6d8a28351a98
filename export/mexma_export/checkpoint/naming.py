"""Their tensor names -> ours: one table, with the shape that each tensor must have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mexma_export.checkpoint.config import Family, ModelConfig
from mexma_export.checkpoint.tensors import DTYPES, TensorInfo

PREFIXES = {Family.XLM_ROBERTA: "roberta.", Family.BERT: "bert."}
"""What a model saved with a head puts before the encoder's names: transformers' base_model_prefix."""

IGNORED = re.compile(
    r"(pooler\.dense|lm_head|cls|classifier|qa_outputs)\..*|(embeddings\.)?position_ids|embeddings\.token_type_ids"
)
"""Heads, the untrained pooler and index buffers: no part of the sentence vector."""

OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""Endings that TensorFlow's BERT had, and google-bert's own safetensors have: transformers reads both."""

_EMBEDDINGS = {
    "embeddings.word_embeddings.weight": ("embeddings.word", ("vocab_size", "hidden_size")),
    "embeddings.position_embeddings.weight": ("embeddings.position", ("n_positions", "hidden_size")),
    "embeddings.token_type_embeddings.weight": ("embeddings.token_type", ("n_token_types", "hidden_size")),
    "embeddings.LayerNorm.weight": ("embeddings.norm.gamma", ("hidden_size",)),
    "embeddings.LayerNorm.bias": ("embeddings.norm.beta", ("hidden_size",)),
}

_LAYER = {
    "attention.self.query": ("attention.query", ("hidden_size", "hidden_size")),
    "attention.self.key": ("attention.key", ("hidden_size", "hidden_size")),
    "attention.self.value": ("attention.value", ("hidden_size", "hidden_size")),
    "attention.output.dense": ("attention.output", ("hidden_size", "hidden_size")),
    "attention.output.LayerNorm": ("attention.norm", ("hidden_size",)),
    "intermediate.dense": ("ffn.up", ("ffn_size", "hidden_size")),
    "output.dense": ("ffn.down", ("hidden_size", "ffn_size")),
    "output.LayerNorm": ("ffn.norm", ("hidden_size",)),
}
"""A module of encoder.layer.N -> our path under layer.N and the shape of its weight as PyTorch stores it (out, in)."""


@dataclass(frozen=True, kw_only=True)
class ExpectedTensor:
    """One tensor that a checkpoint must hold."""

    theirs: str
    """Name in the checkpoint, without a head's prefix."""
    ours: str
    shape: tuple[int, ...]


def expected_tensors(config: ModelConfig) -> list[ExpectedTensor]:
    """Every tensor of the encoder, in the order of the computation."""

    def shape(names: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(getattr(config, name) for name in names)

    tensors = [ExpectedTensor(theirs=t, ours=o, shape=shape(s)) for t, (o, s) in _EMBEDDINGS.items()]
    for layer in range(config.n_layers):
        for theirs, (ours, weight_shape) in _LAYER.items():
            weight, bias = ("gamma", "beta") if ours.endswith("norm") else ("weight", "bias")
            stem = f"encoder.layer.{layer}.{theirs}"
            path = f"layer.{layer}.{ours}"
            tensors.append(ExpectedTensor(theirs=f"{stem}.weight", ours=f"{path}.{weight}", shape=shape(weight_shape)))
            tensors.append(ExpectedTensor(theirs=f"{stem}.bias", ours=f"{path}.{bias}", shape=shape(weight_shape[:1])))
    return tensors


def match_tensors(config: ModelConfig, found: Mapping[str, TensorInfo]) -> tuple[dict[str, TensorInfo], list[str]]:
    """Our names -> the tensors that were `found`, and all that is missing, unexpected or of another shape or dtype."""
    wanted = expected_tensors(config)
    matched: dict[str, TensorInfo] = {}
    problems: list[str] = []
    unclaimed: dict[str, TensorInfo] = {}
    for tensor in found.values():
        name = _of_today(tensor.name)
        if name in unclaimed:
            problems.append(f"{tensor.name}: {unclaimed[name].name} is another name for it: expected one of them")
        unclaimed[name] = tensor
    prefix = find_prefix(unclaimed, wanted)
    if prefix not in ("", PREFIXES[config.family]):
        problems.append(
            f"the encoder's tensors stand under {prefix!r}, and transformers reads them bare or under "
            f"{PREFIXES[config.family]!r} alone: rename them, or load the model that they are of by transformers and "
            "save_pretrained() its encoder"
        )
        return {}, problems
    for expected in wanted:
        name = prefix + expected.theirs
        info = unclaimed.pop(name, None)
        if info is None:
            problems.append(f"{name}: missing, expected {list(expected.shape)}")
            continue
        if info.shape != expected.shape:
            problems.append(f"{info.name}: expected {list(expected.shape)} from config.json, got {list(info.shape)}")
        if not info.is_readable:
            problems.append(f"{info.name}: expected weights in {', '.join(DTYPES)}, got {info.dtype}")
        matched[expected.ours] = info
    for name, info in unclaimed.items():
        if not IGNORED.fullmatch(name.removeprefix(prefix)):
            problems.append(f"{info.name}: unexpected: the graph has no place for it")
    return matched, problems


def _of_today(name: str) -> str:
    """The name of a tensor as transformers writes it today."""
    for old, new in OLD_NAMES.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def find_prefix(names: Collection[str], expected: list[ExpectedTensor]) -> str:
    """The prefix under which most of the `expected` tensors stand among `names`; "" where none does."""
    endings = {tensor.theirs for tensor in expected}
    found = Counter[str]()
    for name in names:
        parts = name.split(".")
        for at in range(len(parts)):
            if ".".join(parts[at:]) in endings:
                found[".".join(parts[:at]) + "." if at else ""] += 1
    return max(found, key=lambda prefix: (found[prefix], -len(prefix)), default="")
