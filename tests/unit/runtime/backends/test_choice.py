from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mexma_runtime import Encoder
from mexma_runtime.backends import choice, choose, runnable_engines
from mexma_runtime.backends.cpu import openvino as openvino_cpu
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry, ProductMode
from mexma_runtime.errors import EngineUnavailableError, UsageError
from mexma_runtime.hardware import VNNI, detect_hardware
from mexma_runtime.types import Dialect, Precision

MakeInt8Bundle = Callable[..., Bundle]
BOTH = ("onnxruntime", "openvino")


@pytest.fixture
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


def with_engines(bundle: Bundle, *engines: EngineEntry) -> Bundle:
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, engines=list(engines)))


def variant(
    bundle: Bundle,
    dialect: Dialect,
    precision: Precision,
    *backends: str,
    recipe: str | None = None,
    activation: str | None = None,
) -> EngineEntry:
    words = [dialect, precision, recipe, activation]
    return dataclasses.replace(
        bundle.manifest.engines[0],
        name=".".join(word for word in words if word),
        dialect=dialect,
        precision=precision,
        recipe=recipe,
        activation=activation,
        requires=dict.fromkeys(backends or ("onnxruntime",), "1.16"),
    )


def int8(bundle: Bundle, recipe: str, *backends: str, activation: str = "uint8") -> EngineEntry:
    return variant(bundle, Dialect.PORTABLE, Precision.INT8, *backends, recipe=recipe, activation=activation)


def chosen(bundle: Bundle, *, device: str = "cpu", **asked: str | None) -> tuple[str, str]:
    spec, engine = choose(bundle, device=device, **asked)
    return spec.name, engine.name


def on_processor_with(monkeypatch: pytest.MonkeyPatch, *instruction_sets: str) -> None:
    hardware = dataclasses.replace(detect_hardware(), instruction_sets=instruction_sets)
    for module in (choice, openvino_cpu):
        monkeypatch.setattr(module, "detect_hardware", lambda: hardware)


@pytest.mark.parametrize(
    ("device", "name", "said"),
    [
        ("cuda:1", "tensorrt", r"no fp32 engine for backend tensorrt on cuda; the bundle has portable\.fp32"),
        ("cuda", "openvino", r"openvino on cuda is not in this version"),
        ("cpu", "tensorrt", r"tensorrt on cpu is not in this version"),
        ("cpu", "caffe", r"there is no backend 'caffe'; this version has onnxruntime on cpu, openvino on cpu"),
    ],
)
def test_no_other_device_or_backend_takes_over(bundle: Bundle, device: str, name: str | None, said: str) -> None:
    with pytest.raises(EngineUnavailableError, match=said):
        choose(bundle, device=device, backend=name)


@pytest.mark.parametrize("device", ["", "gpu", "cpu:0", "cuda:one", "CPU"])
def test_what_is_no_device_is_refused(bundle: Bundle, device: str) -> None:
    with pytest.raises(UsageError, match="device: expected"):
        choose(bundle, device=device)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, ("onnxruntime", "fused.fp32")),
        ({"precision": "fp32"}, ("onnxruntime", "fused.fp32")),
        ({"precision": Precision.FP16}, ("onnxruntime", "portable.fp16")),
        ({"dialect": "portable"}, ("onnxruntime", "portable.fp32")),
        ({"backend": "openvino"}, ("openvino", "portable.fp32")),
        ({"engine": "portable.fp32"}, ("onnxruntime", "portable.fp32")),
        ({"engine": "portable.fp32", "backend": "openvino", "precision": "fp32"}, ("openvino", "portable.fp32")),
    ],
)
def test_floats_are_for_onnxruntime_unless_asked_otherwise(
    bundle: Bundle, asked: dict[str, str], expected: tuple[str, str]
) -> None:
    engines = [
        variant(bundle, Dialect.PORTABLE, Precision.FP16, *BOTH),
        variant(bundle, Dialect.PORTABLE, Precision.FP32, *BOTH),
        variant(bundle, Dialect.FUSED, Precision.FP32),
        variant(bundle, Dialect.FUSED, Precision.FP16, "another"),
    ]

    assert chosen(with_engines(bundle, *engines), **asked) == expected


@pytest.mark.parametrize(
    ("instruction_sets", "asked", "expected"),
    [
        (("avx2", "avx512_vnni"), {}, ("openvino", "portable.int8.precise.uint8")),
        (("avx2", "avx_vnni"), {}, ("openvino", "portable.int8.precise.uint8")),
        (("avx2",), {}, ("onnxruntime", "portable.int8.fast.uint8")),
        (("asimd", "asimddp"), {}, ("onnxruntime", "portable.int8.fast.uint8")),
        (("avx2", "avx_vnni"), {"backend": "onnxruntime"}, ("onnxruntime", "portable.int8.fast.uint8")),
        (("avx2",), {"backend": "openvino"}, ("openvino", "portable.int8.precise.uint8")),
        (("avx2", "avx_vnni"), {"recipe": "precise"}, ("openvino", "portable.int8.precise.uint8")),
        (("avx2", "avx_vnni"), {"recipe": "mine"}, ("onnxruntime", "portable.int8.mine.uint8")),
        (
            ("avx2", "avx_vnni"),
            {"engine": "portable.int8.fast.int8", "backend": "onnxruntime"},
            ("onnxruntime", "portable.int8.fast.int8"),
        ),
    ],
)
def test_int8_is_for_openvino_where_the_processor_has_vnni(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    instruction_sets: tuple[str, ...],
    asked: dict[str, str],
    expected: tuple[str, str],
) -> None:
    on_processor_with(monkeypatch, *instruction_sets)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    engines = [
        variant(bundle, Dialect.FUSED, Precision.FP32),
        int8(bundle, "mine"),
        int8(bundle, "precise", *BOTH),
        int8(bundle, "fast", *BOTH, activation="int8"),
        int8(bundle, "fast", *BOTH),
    ]
    asked = {"precision": "int8", **asked}

    assert chosen(with_engines(bundle, *engines), **asked) == expected
    if "recipe" in asked:
        assert chosen(with_engines(bundle, *engines), recipe=asked["recipe"]) == expected


def test_a_limit_on_onednn_counts_as_the_processor(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    on_processor_with(monkeypatch, "avx2", "avx512f", "avx512_vnni")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")

    assert chosen(with_engines(bundle, int8(bundle, "fast", *BOTH)))[0] == "onnxruntime"


def test_recipes_without_a_place_follow_by_name(bundle: Bundle) -> None:
    engines = [int8(bundle, recipe) for recipe in ("zebra", "apple")]

    assert chosen(with_engines(bundle, *engines))[1] == "portable.int8.apple.uint8"


def test_a_library_that_is_not_installed_is_not_chosen(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    on_processor_with(monkeypatch, "avx2", "avx512_vnni")
    engines = [variant(bundle, Dialect.PORTABLE, Precision.FP32, *BOTH), int8(bundle, "fast", *BOTH)]
    two = with_engines(bundle, *engines)

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "openvino", None)
        assert chosen(two, precision="int8")[0] == "onnxruntime"
        assert {name for name, _ in runnable_engines(two, "cpu")} == {"onnxruntime"}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        assert chosen(two, precision="fp32")[0] == "openvino"
        patch.setitem(sys.modules, "openvino", None)
        assert chosen(two, precision="fp32")[0] == "onnxruntime"


def test_without_vnni_openvino_takes_the_recipe_that_it_may_run(
    make_int8_bundle: MakeInt8Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles = [make_int8_bundle(ProductMode.STATIC, bits=bits) for bits in (8, 7)]
    wide, narrow = (bundle.manifest.engines[0] for bundle in bundles)
    two = with_engines(
        bundles[0], wide, dataclasses.replace(narrow, name="portable.int8.narrow.uint8", recipe="narrow")
    )

    on_processor_with(monkeypatch, "avx2")
    assert chosen(two, backend="openvino") == ("openvino", "portable.int8.narrow.uint8")
    on_processor_with(monkeypatch, "avx2", "avx_vnni")
    assert chosen(two, backend="openvino") == ("openvino", "portable.int8.fast.uint8")


def test_every_pair_that_runs_here_is_listed_floats_first(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    on_processor_with(monkeypatch, "avx2", "avx512_vnni")
    engines = [
        int8(bundle, "fast", *BOTH),
        variant(bundle, Dialect.PORTABLE, Precision.FP32, *BOTH),
        variant(bundle, Dialect.FUSED, Precision.FP32, "another"),
        variant(bundle, Dialect.FUSED, Precision.FP16),
        variant(bundle, Dialect.FUSED, Precision.FP32),
    ]
    engines[2] = dataclasses.replace(engines[2], name="fused.fp32.another")
    all_of_them = with_engines(bundle, *engines)

    found = [(name, engine.name) for name, engine in runnable_engines(all_of_them, "cpu")]

    assert found == [
        ("onnxruntime", "fused.fp32"),
        ("onnxruntime", "portable.fp32"),
        ("openvino", "portable.fp32"),
        ("onnxruntime", "fused.fp16"),
        ("openvino", "portable.int8.fast.uint8"),
        ("onnxruntime", "portable.int8.fast.uint8"),
    ]
    on_processor_with(monkeypatch, "avx2")
    assert ("openvino", "portable.int8.fast.uint8") not in [
        (name, engine.name) for name, engine in runnable_engines(all_of_them, "cpu")
    ]
    with pytest.raises(EngineUnavailableError, match="CUDAExecutionProvider was asked for"):
        runnable_engines(bundle, "cuda")
    with pytest.raises(UsageError, match="expected 'cpu', 'cuda' or 'cuda:N', got 'tpu'"):
        runnable_engines(bundle, "tpu")


def test_packed_engines_are_for_gpus_and_int8_for_cpus(bundle: Bundle) -> None:
    packed, fused = (variant(bundle, dialect, Precision.FP16) for dialect in (Dialect.PACKED, Dialect.FUSED))
    fp32, int8_ = (variant(bundle, Dialect.PACKED, Precision.FP32), variant(bundle, Dialect.FUSED, Precision.INT8))
    all_of_them = with_engines(bundle, fused, int8_, fp32, packed)

    assert chosen(all_of_them, device="cuda") == ("onnxruntime", "packed.fp16")
    assert chosen(all_of_them, device="cuda:1", precision="fp32") == ("onnxruntime", "packed.fp32")
    assert chosen(all_of_them, device="cuda", dialect="fused") == ("onnxruntime", "fused.fp16")
    assert choose(all_of_them, device=["cuda:0", "cuda:1"])[1].name == "packed.fp16"
    with pytest.raises(EngineUnavailableError, match=r"no int8 engine for .* on cuda; .* \(for onnxruntime on cpu\)"):
        chosen(all_of_them, device="cuda", precision="int8")
    with pytest.raises(EngineUnavailableError, match=r"no engine packed\.fp16 .* \(for onnxruntime on cuda\)"):
        chosen(all_of_them, engine="packed.fp16")


@pytest.mark.parametrize("devices", [[], ["cuda", "cuda"], ["cpu", "cuda"], ["cuda:0", "cpu"]])
def test_several_devices_are_different_gpus(bundle: Bundle, devices: list[str]) -> None:
    with pytest.raises(UsageError, match="device: "):
        choose(bundle, device=devices)


def test_the_only_precision_is_taken(bundle: Bundle) -> None:
    assert chosen(with_engines(bundle, variant(bundle, Dialect.FUSED, Precision.FP16)))[1] == "fused.fp16"


def test_an_engine_that_is_not_there_is_answered_with_those_that_are(bundle: Bundle) -> None:
    two = with_engines(
        bundle, variant(bundle, Dialect.FUSED, Precision.FP16), variant(bundle, Dialect.FUSED, Precision.INT8)
    )
    said = (
        r"no fp32 engine for backend onnxruntime or openvino on cpu; the bundle has fused.fp16 "
        r"\(for onnxruntime on cpu or onnxruntime on cuda\), fused.int8 \(for onnxruntime on cpu\)"
    )

    with pytest.raises(EngineUnavailableError, match=said):
        chosen(two)
    with pytest.raises(EngineUnavailableError, match="no int8 engine in dialect portable of recipe fast for backend o"):
        chosen(two, precision="int8", dialect="portable", recipe="fast")
    with pytest.raises(EngineUnavailableError, match=r"no engine 'fused\.fp8'; the bundle has fused\.fp16"):
        chosen(two, engine="fused.fp8")
    with pytest.raises(EngineUnavailableError, match=r"no engine fused\.fp16 for backend openvino on cpu; the b"):
        chosen(two, engine="fused.fp16", backend="openvino")
    with pytest.raises(EngineUnavailableError, match="the bundle has no engines"):
        chosen(with_engines(bundle))


def test_wishes_that_make_no_sense_are_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="precision: expected one of fp32, fp16, int8, fp8, got 'fp64'"):
        chosen(bundle, precision="fp64")
    for wish, value in (("precision", "fp16"), ("dialect", "portable"), ("recipe", "fast")):
        with pytest.raises(UsageError, match=f"{wish} {value} was asked for with engine fused.fp32, whose {wish} is"):
            chosen(bundle, engine="fused.fp32", **{wish: value})


@pytest.mark.skipif(VNNI.isdisjoint(detect_hardware().instruction_sets), reason="the processor has no VNNI")
def test_an_encoder_says_what_was_chosen(make_int8_bundle: MakeInt8Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    folder = make_int8_bundle(ProductMode.STATIC).folder

    for backend in (None, "onnxruntime"):
        with Encoder.load(folder, engine="portable.int8.fast.uint8", recipe="fast", backend=backend) as encoder:
            info = encoder.info
        assert info.backend == (backend or "openvino")
        assert (info.engine, info.recipe, info.activation) == ("portable.int8.fast.uint8", "fast", "uint8")
