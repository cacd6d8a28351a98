"""The whole path at the size of MEXMA: 24 layers, 2.2 GB of fp32 weights. Minutes, 8 GB of disk."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mexma_export.checkpoint.standin import write_standin

MAX_MEMORY_BYTES = 4e9


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
