"""What of building plans needs no TensorRT: which engines, and what is said without it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from mexma_export.targets.tensorrt.build import engines_for_tensorrt
from mexma_runtime import Encoder
from mexma_runtime.backends.tensorrt_library import MAX_KEPT, TENSORRT, Messages
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.errors import EngineUnavailableError, MissingDependencyError
from mexma_runtime.types import Precision

needs_none = pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")


def test_engines_for_tensorrt_are_found_by_precision_or_name(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    (entry,) = engines_for_tensorrt(bundle, precisions=())
    assert entry.name == "portable.fp16"
    assert engines_for_tensorrt(bundle, precisions=[Precision.FP16], engine="portable.fp16") == [entry]
    for wanted, said in (
        ({"precisions": [Precision.INT8]}, "no engine in int8 for"),
        ({"precisions": (), "engine": "fused.fp16"}, "no engine 'fused.fp16' for"),
        ({"precisions": (), "engine": ""}, "no engine '' for"),
        ({"precisions": [Precision.INT8], "engine": "portable.fp16"}, "no engine 'portable.fp16' in int8 for"),
    ):
        with pytest.raises(EngineUnavailableError, match=said + r" TensorRT; those it has: portable\.fp16\. Add some"):
            engines_for_tensorrt(bundle, **wanted)


@needs_none
def test_without_tensorrt_an_encoder_says_what_to_install(tiny_bundle: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'mexma-runtime\[tensorrt\]'"):
        Encoder.load(tiny_bundle, device="cuda", backend="tensorrt")


def test_the_last_errors_are_told_once() -> None:
    said: list[str] = []
    messages = Messages(TENSORRT, lambda severity, text: said.append(severity))
    for number in range(MAX_KEPT + 5):
        messages.add("ERROR", f"e{number}")
    messages.add("INFO", "building")
    told = messages.errors()
    assert told.startswith("e5; ")
    assert told.endswith(f"e{MAX_KEPT + 4}")
    assert "building" not in told
    assert said.count("INFO") == 1
    assert messages.errors() == "TensorRT gives no reason"
