"""The graphs for TensorRT, parsed and compiled by NVIDIA's real compiler: TensorRT for RTX, which needs no GPU for it.

What it proves and what it does not: docs/tensorrt.md.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from mexma_export.targets.targets import BuildTarget, TargetOptions, make_target
from mexma_export.targets.tensorrt.build import BuildOptions, build_plans
from mexma_export.targets.tensorrt.builder import build
from mexma_export.targets.tensorrt.plan_targets import RtxGpus
from mexma_export.targets.tensorrt.profiles import DEFAULT_SPECS, parse_profiles
from mexma_runtime import Encoder
from mexma_runtime.backends import rtx_platform
from mexma_runtime.backends.tensorrt_library import TENSORRT_RTX, Messages, make_logger
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry, ProductMode
from mexma_runtime.bundle.plans import Profile, find_plan, plans_folder, read_plan
from mexma_runtime.bundle.rtx_capabilities import CAPABILITIES, Capability
from mexma_runtime.cli.commands import build_app
from mexma_runtime.errors import EngineUnavailableError, MexmaError
from mexma_runtime.types import QUANTIZED, Precision

rtx: Any = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is for x86-64 alone")
PRECISIONS = (Precision.FP16, Precision.INT8, Precision.FP8)
each = pytest.mark.parametrize("precision", PRECISIONS)


def entry_of(bundle: Bundle, precision: Precision) -> EngineEntry:
    return next(entry for entry in bundle.manifest.engines if entry.precision is precision)


def compiled(
    bundle: Bundle,
    precision: Precision,
    *capabilities: str,
    profiles: Sequence[Profile] = (),
    graph: Path | None = None,
    inputs: Sequence[str] | None = None,
    said: list[str] | None = None,
) -> memoryview:
    entry = entry_of(bundle, precision)
    return build(
        graph or bundle.path(entry.file),
        entry.inputs if inputs is None else inputs,
        profiles or parse_profiles(["8x512"], max_tokens=bundle.manifest.text.max_tokens),
        RtxGpus(capabilities or ["8.9"]),
        say=lambda severity, text: None if said is None else said.append(text),
        report=lambda phase, done, total: None,
    ).plan


@pytest.fixture
def mine(xlmr_for_tensorrt: Bundle, tmp_path: Path) -> Bundle:
    """A copy, for plans of its own."""
    return Bundle.open(shutil.copytree(xlmr_for_tensorrt.folder, tmp_path / "bundle"))


def test_plans_are_built_described_and_found(mine: Bundle) -> None:
    """By the command and its defaults."""
    folder = mine.folder
    done = CliRunner().invoke(build_app(), ["build", str(folder), "--target", "tensorrt-rtx"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    bundle = Bundle.open(folder, verify=True)
    for precision, capabilities in (
        (Precision.FP16, ["8.6", "8.9", "12.0"]),
        (Precision.INT8, ["8.6", "8.9", "12.0"]),
        (Precision.FP8, ["8.9", "12.0"]),
    ):
        entry, platform = entry_of(bundle, precision), rtx_platform(capabilities)
        plan = read_plan(plans_folder(folder, platform) / f"{entry.name}.json")
        assert (plan.target, plan.compatibility, plan.graph) == (platform, None, entry.file)
        assert plan.profiles == parse_profiles(DEFAULT_SPECS, max_tokens=mine.manifest.text.max_tokens)
        for capability in capabilities:
            found, path = find_plan(folder, entry, rtx_platform([capability]))
            assert found == plan
            assert hashlib.sha256(path.read_bytes()).hexdigest() == plan.sha256
        assert f"{entry.name} for compute capability {', '.join(capabilities)} with TensorRT for RTX" in done.stderr
        assert (plans_folder(folder, platform) / f"{entry.name}.log").stat().st_size > 0
    assert "portable.fp8.tensorrt.e4m3: not for 8.6, which has no fp8" in done.stderr


def test_every_kind_of_profile_compiles(tensorrt_bundle: Bundle) -> None:
    """Default plans have the first two kinds in every precision."""
    profiles = parse_profiles(["latency:2", "throughput:2048", "16x24"], max_tokens=512)
    assert compiled(tensorrt_bundle, Precision.FP16, profiles=profiles).nbytes > 0


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda capability: str(capability.number))
def test_the_compiler_takes_what_the_table_says(capability: Capability, tensorrt_bundle: Bundle) -> None:
    """But for int8 on Turing, which it takes and NVIDIA's support matrix has not."""
    assert compiled(tensorrt_bundle, Precision.FP16, capability.number).nbytes > 0
    if Precision.FP8 not in capability.precisions:
        with pytest.raises(MexmaError, match=r"cannot build this network: .*HW-specific datatypes: fp8_e4m3"):
            compiled(tensorrt_bundle, Precision.FP8, capability.number)


@pytest.mark.parametrize("precision", sorted(QUANTIZED))
def test_products_of_8_bits_compile_for_all_that_have_them(precision: Precision, tensorrt_bundle: Bundle) -> None:
    able = [capability.number for capability in CAPABILITIES if precision in capability.precisions]
    assert compiled(tensorrt_bundle, precision, *able).nbytes > 0


@each
def test_the_parser_sees_the_types_and_places_that_were_written(precision: Precision, tensorrt_bundle: Bundle) -> None:
    """Every product in fp16; what is quantized in 8 bits, by constant scales, and read by products alone."""
    entry = entry_of(tensorrt_bundle, precision)
    messages = Messages(TENSORRT_RTX)
    logger = make_logger(TENSORRT_RTX, messages)
    builder = rtx.Builder(logger)
    network = builder.create_network(0)
    assert rtx.OnnxParser(network, logger).parse_from_file(str(tensorrt_bundle.path(entry.file))), messages.errors()
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    readers: dict[str, list[Any]] = {}
    for layer in layers:
        for index in range(layer.num_inputs):
            if tensor := layer.get_input(index):
                readers.setdefault(tensor.name, []).append(layer)
    kind = rtx.LayerType
    for layer in layers:
        output = layer.get_output(0)
        if layer.type in (kind.MATRIX_MULTIPLY, kind.SOFTMAX):
            assert output.dtype == rtx.float16, layer.name
        if layer.type == kind.QUANTIZE:
            assert output.dtype == (rtx.int8 if precision is Precision.INT8 else rtx.fp8), layer.name
            assert {reader.type for reader in readers[output.name]} == {kind.DEQUANTIZE}
        if layer.type == kind.DEQUANTIZE:
            assert {reader.type for reader in readers[output.name]} <= {kind.MATRIX_MULTIPLY, kind.SHUFFLE}
    found = {layer.type for layer in layers}
    assert (kind.QUANTIZE in found, kind.DEQUANTIZE in found) == (precision in QUANTIZED,) * 2
    assert {network.get_input(index).name for index in range(network.num_inputs)} == set(entry.inputs)


@each
def test_attention_is_one_kernel_and_products_are_in_the_precision(
    precision: Precision, minilm_for_tensorrt: Bundle
) -> None:
    """By the compiler's own list of kernels, the last thing that it says."""
    n_layers, said = minilm_for_tensorrt.manifest.model.n_layers, list[str]()
    plan = compiled(minilm_for_tensorrt, precision, said=said)
    (listed,) = (text for text in said if text.startswith("Layers:"))
    kernels = [line for line in listed.splitlines() if "LayerType: " in line]
    assert sum("_gemm_mha_" in line for line in kernels) == n_layers
    products = [line for line in kernels if ".product" in line.partition(",")[0]]
    joined = [
        line for line in products if all(f"attention.{name}.product" in line for name in ("query", "key", "value"))
    ]
    assert len(joined) == n_layers
    types = [re.findall(r"Datatype: (\w+)", line)[0] for line in products]
    quantization = entry_of(minilm_for_tensorrt, precision).quantization
    if quantization is None:
        # FFN-up has its bias and GELU in the product.
        assert sum("FcAddDivCastErfCastAddMulMul" in line for line in kernels) == n_layers
        assert types == ["Half"] * (3 * n_layers)
    else:
        eight_bits = {Precision.INT8: "Int8", Precision.FP8: "FP8"}[precision]
        n_quantized = sum(product.mode is not ProductMode.FLOAT for product in quantization.products)
        assert types.count(eight_bits) == n_quantized
        assert set(types) <= {eight_bits, "Half"}
    if precision is Precision.INT8:
        weights = entry_of(minilm_for_tensorrt, Precision.FP16).weights
        assert plan.nbytes < sum(minilm_for_tensorrt.path(file).stat().st_size for file in weights)


def test_turing_has_a_plan_of_its_own(mine: Bundle) -> None:
    options = TargetOptions(
        target=BuildTarget.TENSORRT_RTX, capabilities=("12.0", "7.5"), profiles=("8x512",), engine="portable.fp16"
    )
    made = make_target(mine.folder, options, progress=lambda what, done, total: None)
    assert [line.partition(" with")[0] for line in made] == [
        "portable.fp16 for compute capability 7.5",
        "portable.fp16 for compute capability 12.0",
    ]


def test_of_two_plans_the_one_for_fewer_gpus_is_taken(mine: Bundle) -> None:
    for capabilities in ((), ("8.9",)):
        options = TargetOptions(
            target=BuildTarget.TENSORRT_RTX,
            capabilities=capabilities,
            profiles=("8x512",),
            precisions=(Precision.FP16,),
        )
        make_target(mine.folder, options, progress=lambda what, done, total: None)
    for capability, shared in (("8.9", ["8.9"]), ("8.6", ["8.6", "8.9", "12.0"])):
        plan, _ = find_plan(mine.folder, entry_of(mine, Precision.FP16), rtx_platform([capability]))
        assert plan.target == rtx_platform(shared)
    with pytest.raises(EngineUnavailableError) as refused:
        find_plan(mine.folder, entry_of(mine, Precision.FP16), rtx_platform(["12.1"]))
    for said in (
        "no TensorRT for RTX plan of engine portable.fp16 for compute capability 12.1 with TensorRT for RTX",
        "there are plans for compute capability 8.6, 8.9, 12.0 with TensorRT for RTX",
        "Build one, on any machine: mexma build ",
        " --target tensorrt-rtx --engine portable.fp16 --capability 12.1",
    ):
        assert said in str(refused.value)


def test_a_failed_build_keeps_the_old_plan_and_tells_where_the_log_is(mine: Bundle) -> None:
    options = TargetOptions(target=BuildTarget.TENSORRT_RTX, profiles=("8x512",), precisions=(Precision.FP16,))
    make_target(mine.folder, options, progress=lambda what, done, total: None)
    entry, platform = entry_of(mine, Precision.FP16), rtx_platform(["8.6", "8.9", "12.0"])
    before = find_plan(mine.folder, entry, platform)
    for name in entry.weights:
        mine.path(name).write_bytes(b"")
    how = BuildOptions(platform=platform, profiles=("8x512",))
    with pytest.raises(MexmaError) as failed:
        build_plans(mine, [entry], how, progress=lambda what, done, total: None)
    log = plans_folder(mine.folder, platform) / "portable.fp16.log"
    assert "cannot read this graph: " in str(failed.value)
    assert str(failed.value).endswith(f"All that TensorRT for RTX said is in {log}; no plan was replaced")
    assert find_plan(mine.folder, entry, platform) == before


def test_its_messages_become_our_errors(xlmr_for_tensorrt: Bundle, tmp_path: Path) -> None:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], name="first.of.its.kind", domain="com.microsoft")
    graph = helper.make_graph([node], "g", [tensors[0]], [tensors[1]])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "unknown.onnx")
    with pytest.raises(MexmaError, match=r"unknown\.onnx: TensorRT for RTX 1\.\S+ cannot read this graph: .*NoSuchOp"):
        compiled(xlmr_for_tensorrt, Precision.FP16, graph=tmp_path / "unknown.onnx")
    inputs = entry_of(xlmr_for_tensorrt, Precision.FP16).inputs
    with pytest.raises(MexmaError, match=rf"cannot build this network: .*{inputs[-1]} is missing dimensions"):
        compiled(xlmr_for_tensorrt, Precision.FP16, inputs=inputs[:-1])


def test_what_progress_raises_ends_the_build(xlmr_for_tensorrt: Bundle) -> None:
    entry = entry_of(xlmr_for_tensorrt, Precision.FP16)
    phases: list[str] = []

    def interrupt(phase: str, done: int, total: int) -> None:
        phases.append(phase)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(
            xlmr_for_tensorrt.path(entry.file),
            entry.inputs,
            parse_profiles(["8x512"], max_tokens=512),
            RtxGpus(["8.9"]),
            say=lambda severity, text: None,
            report=interrupt,
        )
    assert phases


def test_a_signal_ends_a_build_and_leaves_no_plan(xlmr_for_tensorrt: Bundle, tmp_path: Path) -> None:
    """The library calls Python all the time, and drops what a signal's handler raises within it."""
    folder = shutil.copytree(xlmr_for_tensorrt.folder, tmp_path / "bundle")
    profiles = [word for most in range(1, 25) for word in ("--profile", f"{most}x512")]
    command = [sys.executable, "-m", "mexma_runtime", "build", str(folder), "--target", "tensorrt-rtx"]
    log = plans_folder(folder, rtx_platform(["8.6", "8.9", "12.0"])) / "portable.fp16.log"
    with subprocess.Popen([*command, "--engine", "portable.fp16", *profiles], stderr=subprocess.PIPE) as process:
        while not (log.exists() and log.stat().st_size):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130, said
    assert "Exception" not in said
    assert not list(log.parent.glob("*plan*"))


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no Unicode")
def test_a_folder_whose_name_is_no_unicode(xlmr_for_tensorrt: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(xlmr_for_tensorrt.folder, tmp_path / os.fsdecode(b"caf\xe9")))
    assert compiled(Bundle.open(folder), Precision.INT8).nbytes > 0


def test_an_engine_whose_files_are_links_is_parsed_too(xlmr_for_tensorrt: Bundle, tmp_path: Path) -> None:
    """As a hub's cache has them: the graph and its weights in a folder of their own, under other names."""
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    folder.mkdir()
    for number, path in enumerate(sorted(p for p in xlmr_for_tensorrt.folder.iterdir() if p.is_file())):
        shutil.copyfile(path, blobs / str(number))
        (folder / path.name).symlink_to(blobs / str(number))
    assert compiled(Bundle.open(folder), Precision.INT8).nbytes > 0


def test_without_a_gpu_the_backend_says_so(xlmr_for_tensorrt: Bundle) -> None:
    with pytest.raises(EngineUnavailableError, match="no NVIDIA driver was found"):
        Encoder.load(xlmr_for_tensorrt.folder, device="cuda", backend="tensorrt-rtx", precision="fp16")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--capability", "9.0"),
            "--capability '9.0': TensorRT for RTX makes plans for 7.5 (GeForce RTX 20, T4), 8.0 ",
        ),
        (
            ("--device", "cuda:1"),
            "--device is for --target tensorrt or plan or triton, and tensorrt-rtx was asked for: leave it out",
        ),
        (("--out", "x"), "--out is for --target plan or triton, and tensorrt-rtx was asked for"),
        (("--hardware-compatible", "ampere-plus"), "--hardware-compatible is for --target tensorrt or plan"),
        (
            ("--precision", "fp8", "--capability", "8.6"),
            "nothing was built. portable.fp8.tensorrt.e4m3: not for 8.6, which has no fp8",
        ),
        (("--precision", "fp32"), "no engine in fp32 for TensorRT"),
    ],
)
def test_what_cannot_be_built_is_refused(words: tuple[str, ...], said: str, xlmr_for_tensorrt: Bundle) -> None:
    command = ["build", str(xlmr_for_tensorrt.folder), "--target", "tensorrt-rtx", *words]
    error = CliRunner().invoke(build_app(), command).exception
    assert isinstance(error, MexmaError)
    assert said in str(error)
    assert not (xlmr_for_tensorrt.folder / "local").exists()
