"""Which compute capabilities plans of TensorRT for RTX are built for, and which of them share a plan. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from mexma_runtime.bundle.rtx_capabilities import CAPABILITIES, TURING, Capability, listed_capabilities
from mexma_runtime.errors import UsageError
from mexma_runtime.types import Precision


def require_capabilities(asked: Sequence[str]) -> list[str]:
    """Those `asked` for, each once and the least first, or the default ones; UsageError for what is none."""
    known = [capability.number for capability in CAPABILITIES]
    if wrong := [number for number in asked if number not in known]:
        raise UsageError(f"--capability {wrong[0]!r}: TensorRT for RTX makes plans for {listed_capabilities()}")
    return [found.number for found in _wanted(asked)]


def capability_groups(precision: Precision, asked: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """Of those `asked` for, or the default ones: which share a plan of `precision`, and which have no such products."""
    wanted = _wanted(asked)
    able = [found.number for found in wanted if precision in found.precisions]
    groups = [[number for number in able if number == TURING], [number for number in able if number != TURING]]
    return [group for group in groups if group], [found.number for found in wanted if found.number not in able]


def _wanted(asked: Sequence[str]) -> list[Capability]:
    return [found for found in CAPABILITIES if (found.number in asked if asked else found.is_default)]
