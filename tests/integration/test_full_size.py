"""The whole path at the size of MEXMA: 24 layers, 2.2 GB of fp32 weights. Minutes, 8 GB of disk."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mexma_benchmarks.gpu_check.tensorrt import quick_recipe
from mexma_export.bundle.pipeline import export
from mexma_export.bundle.request import ExportRequest
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.checkpoint.standin import write_standin
from mexma_export.corpus.sample import load_sample
from mexma_export.quantize.options import QuantizationOptions
from mexma_runtime.backends import rtx_platform
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.plans import find_plan
from mexma_runtime.types import Dialect, Precision

MAX_MEMORY_BYTES = 4e9
MAX_COMPILER_BYTES = 5e9


@pytest.mark.full_size
def test_full_size_is_exported_and_judged_in_bounded_memory(tmp_path: Path) -> None:
    checkpoint = write_standin("mexma", tmp_path / "checkpoint")
    command = [sys.executable, "-m", "mexma_runtime", "export", str(checkpoint), "--out", str(tmp_path / "bundle")]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    judged = {engine["engine"]: engine["certificate"] for engine in json.loads(done.stdout)["judged"]}
    assert sorted(judged) == ["fused.fp16", "fused.fp32", "portable.fp16", "portable.fp32"]
    assert all("transformers" in certificate["reference"] for certificate in judged.values())
    for name in ("fused.fp32", "portable.fp32"):
        assert judged[name]["certified"]
        assert judged[name]["figures"]["cosine_min"] >= 0.999999
        assert judged[name]["figures"]["max_abs_difference"] <= 1e-4
        assert judged[name]["figures"]["top10_agreement"] == 1
    peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert peak_bytes < MAX_MEMORY_BYTES


@pytest.mark.full_size
def test_full_size_compiles_for_rtx_in_bounded_memory(tmp_path: Path) -> None:
    """All precisions and default profiles. Quantized without a search, by few texts: the graphs are the same."""
    texts, folder = tmp_path / "texts.txt", tmp_path / "bundle"
    texts.write_text("\n".join(line.text for line in load_sample()[:100]), encoding="utf-8")
    request = ExportRequest(
        out=folder,
        precisions=(Precision.FP16, Precision.INT8, Precision.FP8),
        dialects=(Dialect.PORTABLE,),
        quantization=QuantizationOptions(recipes=(quick_recipe(),), calibration=texts),
        check_parity=False,
    )
    export(resolve_source(str(write_standin("mexma", tmp_path / "checkpoint"))), request)
    command = [sys.executable, "-m", "mexma_runtime", "build", str(folder), "--target", "tensorrt-rtx"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < MAX_COMPILER_BYTES
    ada = rtx_platform(["8.9"])
    sizes = {e.precision: find_plan(folder, e, ada)[0].size for e in Bundle.open(folder).manifest.engines}
    assert sizes.keys() == {Precision.FP16, Precision.INT8, Precision.FP8}
    # Weights of 8 bits stay so.
    assert max(sizes[Precision.INT8], sizes[Precision.FP8]) < 0.85 * sizes[Precision.FP16]
