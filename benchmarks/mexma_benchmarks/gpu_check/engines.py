"""The steps that make engines: export, and the attention kernels that they run."""

from __future__ import annotations

import shutil
import time

from mexma_benchmarks.gpu_check.steps import Setup
from mexma_benchmarks.result.checks import Check, Record, at_least
from mexma_runtime.bundle.manifest import MANIFEST_NAME
from mexma_runtime.types import Dialect

UNPADDED = ("EFFICIENT_ATTENTION", "FLASH_ATTENTION")
"""onnxruntime's kernels that read packed tokens where they are."""


def export_engines(setup: Setup, record: Record) -> None:
    """Write the checkpoint where it is a stand-in, then the bundle; nothing is judged here."""
    start_s = time.perf_counter()
    if (setup.bundle_folder / MANIFEST_NAME).is_file():  # of an earlier run, and perhaps of an earlier version
        shutil.rmtree(setup.bundle_folder)
    manifest = setup.prepared.bundle.manifest
    seconds, size = time.perf_counter() - start_s, sum(entry.size for entry in manifest.files)
    record.samples |= {"export_s": seconds, "bundle_bytes": size}
    names = ", ".join(engine.name for engine in manifest.engines)
    record.checks += [
        Check(what="checkpoint found or written, and exported", unit="s", measured=seconds, note=manifest.model.id),
        Check(what="bundle", unit="GB", measured=size / 1e9, note=names),
    ]


def read_kernels(setup: Setup, record: Record) -> None:
    """The share of the attention nodes that pad nothing, as onnxruntime says itself."""
    from mexma_runtime.cli.attention_kernels import attention_kernels

    for engine in ("packed.fp16", "fused.fp16"):
        kernels = attention_kernels(setup.prepared.bundle.folder, engine, setup.device)
        record.samples[engine] = kernels
        record.checks.append(
            Check(
                what=f"{engine}: attention nodes whose kernel pads nothing",
                bar=at_least(1) if engine.startswith(Dialect.PACKED) else None,
                measured=sum(kernels.get(kernel, 0) for kernel in UNPADDED) / sum(kernels.values()),
                note=", ".join(f"{kernel} {n}" for kernel, n in kernels.items()),
            )
        )
