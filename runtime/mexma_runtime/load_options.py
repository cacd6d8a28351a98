"""What an encoder is loaded with: the options of `Encoder.load`, and what each may be."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypedDict, get_type_hints

from mexma_runtime.errors import UsageError
from mexma_runtime.quantized_vectors import VectorPrecision
from mexma_runtime.types import Precision


class LoadOptions(TypedDict, total=False):
    """What `Encoder.load` takes; what is left out is chosen. See there."""

    precision: str | None
    recipe: str | None
    dialect: str | None
    engine: str | None
    device: str | Sequence[str]
    backend: str | None
    n_threads: int | None
    spinning: bool | None
    graphs: str | None
    attention: str | None
    memory_limit: int | None
    max_waiting: int
    max_whole_chars: int


def check_load_options(options: LoadOptions) -> None:
    """TypeError for a name that is none, UsageError for a value of another type or a form of vectors."""
    if unknown := sorted(options.keys() - LoadOptions.__annotations__.keys()):
        raise TypeError(f"unknown options: {', '.join(unknown)}; there are {', '.join(LoadOptions.__annotations__)}")
    for name, value in options.items():
        if not isinstance(value, _KINDS[name]) or (isinstance(value, bool) and name != "spinning"):
            raise UsageError(f"{name}: expected {_HINTS[name]}, got {value!r}")
    precision = options.get("precision")
    if precision in set(VectorPrecision) - set(Precision):
        raise UsageError(
            f"precision: expected one of {', '.join(Precision)} (how the engine computes), got {precision!r}, a "
            f"form that vectors are given in: encode(..., precision={precision!r})"
        )


_KINDS: dict[str, Any] = {
    **dict.fromkeys(("max_waiting", "max_whole_chars"), Integral),
    **dict.fromkeys(("n_threads", "memory_limit"), Integral | None),
    **dict.fromkeys(("precision", "recipe", "dialect", "engine", "backend", "graphs", "attention"), str | None),
    "spinning": bool | None,
    "device": str | Sequence,
}
"""The types of LoadOptions, to be checked."""
_HINTS = get_type_hints(LoadOptions)
"""The same, to be told."""
