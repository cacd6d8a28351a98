"""Products that are quantized together because they read the same value: queries, keys and values of a layer."""

from __future__ import annotations

from mexma_export.checkpoint.config import ModelConfig

PARTS = {
    "attention.qkv": ("attention.query", "attention.key", "attention.value"),
    "attention.output": ("attention.output",),
    "ffn.up": ("ffn.up",),
    "ffn.down": ("ffn.down",),
}
"""Group -> the linear layers in it; both are paths below `layer.N`."""

_GROUPS = {linear: group for group, linears in PARTS.items() for linear in linears}


def group_of(path: str) -> str:
    """The group of a linear layer: `layer.3.attention.key` is in `layer.3.attention.qkv`."""
    layer, number, linear = path.split(".", 2)
    return f"{layer}.{number}.{_GROUPS[linear]}"


def linears_of(group: str) -> tuple[str, ...]:
    """The linear layers of a group, by path."""
    layer, number, part = group.split(".", 2)
    return tuple(f"{layer}.{number}.{linear}" for linear in PARTS[part])


def all_groups(config: ModelConfig) -> tuple[str, ...]:
    """Every group of the model, in the order of the computation."""
    return tuple(f"layer.{layer}.{part}" for layer in range(config.n_layers) for part in PARTS)


def multiplications(config: ModelConfig) -> dict[str, int]:
    """Every group of the model -> multiplications a token in its products."""
    hidden, ffn = config.hidden_size, config.ffn_size
    sizes = {
        "attention.qkv": 3 * hidden * hidden,
        "attention.output": hidden * hidden,
        "ffn.up": hidden * ffn,
        "ffn.down": ffn * hidden,
    }
    return {group: sizes[group.split(".", 2)[2]] for group in all_groups(config)}
