"""The steps that make engines: export, and the attention kernels that they run."""

from __future__ import annotations

import time

from mexma_benchmarks.result.checks import Check, at_least
from mexma_benchmarks.gpu_check.run import Record
from mexma_benchmarks.gpu_check.setup import Setup
from mexma_export.bundle.pipeline import export
from mexma_export.bundle.request import ExportRequest
from mexma_runtime.types import Dialect, Precision

UNPADDED = ("EFFICIENT_ATTENTION", "FLASH_ATTENTION")
"""onnxruntime's kernels that read packed tokens where they are."""


def export_engines(setup: Setup, record: Record) -> None:
    """Write the checkpoint where it is a stand-in, then the bundle; nothing is judged here."""
    start_s = time.perf_counter()
    source = setup.source
    found_s = time.perf_counter()
    request = ExportRequest(
        out=setup.folder,
        precisions=(Precision.FP32, Precision.FP16),
        dialects=(Dialect.PORTABLE, Dialect.FUSED, Dialect.PACKED),
        check_parity=False,
    )
    manifest = export(source, request).manifest
    exported_s = time.perf_counter()
    size = sum(entry.size for entry in manifest.files)
    record.samples |= {"source_s": found_s - start_s, "export_s": exported_s - found_s, "bundle_bytes": size}
    names = ", ".join(engine.name for engine in manifest.engines)
    record.checks += [
        Check(what="checkpoint found or written", unit="s", measured=found_s - start_s, note=source.model_id),
        Check(what="export", unit="s", measured=exported_s - found_s, note=names),
        Check(what="bundle", unit="GB", measured=size / 1e9),
    ]


def read_kernels(setup: Setup, record: Record) -> None:
    """The share of the attention nodes that pad nothing, as onnxruntime says itself."""
    from mexma_runtime.cli.attention_kernels import attention_kernels

    for engine in ("packed.fp16", "fused.fp16"):
        kernels = attention_kernels(setup.folder, engine, setup.device)
        record.samples[engine] = kernels
        record.checks.append(
            Check(
                what=f"{engine}: attention nodes whose kernel pads nothing",
                bar=at_least(1) if engine.startswith(Dialect.PACKED) else None,
                measured=sum(kernels.get(kernel, 0) for kernel in UNPADDED) / sum(kernels.values()),
                note=", ".join(f"{kernel} {n}" for kernel, n in kernels.items()),
            )
        )
