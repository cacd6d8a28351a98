"""Which GPUs TensorRT for RTX makes plans for, by their compute capability, and in which precisions.

From NVIDIA's support matrix, and from what the compiler of 1.7.1 takes: tests/integration/test_tensorrt_rtx.py asks it.
"""

from __future__ import annotations

from dataclasses import dataclass

from mexma_runtime.types import Precision

TURING = "7.5"
"""In a plan of its own: one that others share would take none of what they have and Turing has not."""


@dataclass(frozen=True, kw_only=True)
class Capability:
    """One compute capability."""

    number: str
    """`8.9`."""
    examples: str
    """GPUs that have it."""
    precisions: frozenset[Precision]
    is_default: bool = False
    """Whether plans are for it unless others are asked for."""


_FP16 = frozenset({Precision.FP16})
_INT8 = _FP16 | {Precision.INT8}
_FP8 = _INT8 | {Precision.FP8}

CAPABILITIES = (
    Capability(number=TURING, examples="GeForce RTX 20, T4", precisions=_FP16),
    Capability(number="8.0", examples="A100", precisions=_INT8),
    Capability(number="8.6", examples="GeForce RTX 30, A10, A40, RTX A6000", precisions=_INT8, is_default=True),
    Capability(number="8.9", examples="GeForce RTX 40, L4, L40S, RTX 6000 Ada", precisions=_FP8, is_default=True),
    Capability(number="12.0", examples="GeForce RTX 50, RTX PRO 6000", precisions=_FP8, is_default=True),
    Capability(number="12.1", examples="DGX Spark", precisions=_FP8),
)
"""The least first."""


def listed_capabilities() -> str:
    """All of them, in words."""
    return ", ".join(f"{capability.number} ({capability.examples})" for capability in CAPABILITIES)
