"""One look at every weight: the hash of the files, and the weights that no graph can hold."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mexma_export.checkpoint.checkpoint import Checkpoint
from mexma_export.checkpoint.tensors import chunks
from mexma_runtime.bundle.bundle import sha256_of
from mexma_runtime.errors import CheckpointError

FP16_LARGEST = float(np.finfo(np.float16).max)


def scan_weights(
    checkpoint: Checkpoint, *, needs_fp16: bool = False, progress: Callable[[int, int], None] | None = None
) -> str:
    """`weights_sha256`, and a look at every weight.

    CheckpointError names each tensor that holds NaN or infinity or, where it `needs_fp16`, leaves the range of fp16.
    """
    total = 2 * sum(file.stat().st_size for file in _files(checkpoint))
    digest = weights_sha256(checkpoint)
    done, problems = total // 2, []
    for info in checkpoint.tensors.values():
        largest = 0.0
        for chunk in chunks(info):
            largest = float(np.maximum(largest, np.maximum(chunk.max(), -chunk.min())))  # NaN stays NaN
            done += chunk.nbytes
            if progress:
                progress(min(done, total), total)
        if not np.isfinite(largest):
            problems.append(f"{info.name}: holds NaN or infinite weights")
        elif needs_fp16 and largest > FP16_LARGEST:
            problems.append(
                f"{info.name}: its largest magnitude {largest:.6g} is over fp16's {FP16_LARGEST:.0f}: "
                "export fp32 instead"
            )
    if problems:
        raise CheckpointError(checkpoint.source.folder, problems)
    if progress:
        progress(total, total)
    return digest


def weights_sha256(checkpoint: Checkpoint) -> str:
    """sha256 of model.safetensors; of the list of the parts' sums where there are several."""
    sums = [(file.name, sha256_of(file)) for file in _files(checkpoint)]
    if len(sums) == 1:
        return sums[0][1]
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in sums).encode()).hexdigest()


def _files(checkpoint: Checkpoint) -> list[Path]:
    return sorted({info.file for info in checkpoint.tensors.values()})
