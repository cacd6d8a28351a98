"""What a plan's JSON says, made up: nothing here can build one."""

from __future__ import annotations

from pathlib import Path

import pytest

from mexma_runtime.bundle import Bundle
from mexma_runtime.plans import SCHEMA, HardwareCompatibility, Plan, Profile, Range, Target, Tensor, TextRules
from mexma_runtime.types import Precision


@pytest.fixture
def plan(tiny_bundle: Path) -> Plan:
    manifest = Bundle.open(tiny_bundle).manifest
    range_ = Range(least=1, best=1, most=8)
    return Plan(
        schema=SCHEMA,
        writer="tests",
        engine="portable.fp16",
        graph="model.portable.fp16.0.onnx",
        precision=Precision.FP16,
        target=Target(gpu="NVIDIA H200", capability="9.0", tensorrt="10.16.1.11"),
        compatibility=HardwareCompatibility.NONE,
        profiles=[Profile(name="x", n_sentences=range_, longest=range_)],
        inputs=[],
        output=Tensor(name="y", dtype="float32", shape=["sentences", 64], meaning="vectors"),
        text=TextRules(
            max_tokens=512,
            padding_id=1,
            position_scheme=manifest.text.position_scheme,
            pooling=manifest.pooling_mode,
            is_normalized=False,
        ),
        file="portable.fp16.0000.plan",
        size=3,
        sha256="",
    )
