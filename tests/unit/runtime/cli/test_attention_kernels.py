from __future__ import annotations

from pathlib import Path

import pytest

from mexma_runtime.cli.attention_kernels import attention_kernels, parse_kernels
from mexma_runtime.errors import EngineUnavailableError

LINES = (
    "AttentionKernelOptions: FLASH_ATTENTION=1 EFFICIENT_ATTENTION=1 MATH=0",
    "Operator=PackedMultiHeadAttention Node=layer.0.attention.out DataType=fp16 SdpaKernel=FLASH_ATTENTION",
    "Operator=PackedMultiHeadAttention Node=layer.1.attention.out DataType=fp16 SdpaKernel=MATH",
    "Operator=PackedMultiHeadAttention Node=layer.0.attention.out DataType=fp16 SdpaKernel=FLASH_ATTENTION",
    "Operator=MultiHeadAttention DataType=fp32 SdpaKernel=EFFICIENT_ATTENTION",
)
PRINTED = "".join(f"\x1b[36m{line}\x1b[0m\n" for line in LINES)


def test_kernels_are_counted_by_node() -> None:
    assert parse_kernels(PRINTED) == {"FLASH_ATTENTION": 1, "MATH": 1, "EFFICIENT_ATTENTION": 1}
    assert parse_kernels("nothing of the kind") == {}


def test_a_device_that_is_not_there_is_said(packed_bundle: Path) -> None:
    with pytest.raises(EngineUnavailableError, match=r"did not run on cuda: .*CUDAExecutionProvider"):
        attention_kernels(packed_bundle, "packed.fp32", "cuda")


def test_the_engine_is_run_in_a_process_of_its_own(packed_bundle: Path) -> None:
    """A CPU has no attention kernels to choose from."""
    with pytest.raises(EngineUnavailableError, match="ran on cpu, and onnxruntime printed no attention kernels"):
        attention_kernels(packed_bundle, "fused.fp32", "cpu")
