"""What is said where a GPU cannot be used. The CUDA runtime's own functions are called, with or without a driver."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from mexma_runtime.backends.gpu import cuda_checks, cuda_device
from mexma_runtime.backends.gpu import onnxruntime as onnxruntime_cuda
from mexma_runtime.backends.gpu.cuda_checks import (
    Gpu,
    Library,
    capability_problem,
    driver_problem,
    find_gpu,
    libraries,
    load_libraries,
)
from mexma_runtime.backends.gpu.cuda_device import CudaDevice, CudaGraph, call, import_cudart
from mexma_runtime.backends.gpu.onnxruntime import require_placement
from mexma_runtime.backends.gpu.plans.tensorrt_rtx import capability_problem as rtx_problem
from mexma_runtime.backends.gpu.plans.tensorrt_rtx import precision_problem
from mexma_runtime.errors import DeviceError, DeviceMemoryError, EngineUnavailableError
from mexma_runtime.types import Precision


def gpu(capability: tuple[int, int]) -> Gpu:
    return Gpu(index=1, name="NVIDIA V100", capability=capability, memory_bytes=1 << 34)


def has_driver() -> bool:
    return bool(call(import_cudart().cudaDriverGetVersion))


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        (0, "no NVIDIA driver was found: install driver 580 or later"),
        (
            12080,
            "the NVIDIA driver is for CUDA 12.8, and this onnxruntime-gpu was built for CUDA 13: update",
        ),
        (12090, "or install an onnxruntime-gpu for CUDA 12"),
    ],
)
def test_a_driver_that_is_too_old_is_said(driver: int, said: str) -> None:
    assert said in (driver_problem(driver, 13) or "")


def test_tensorrt_is_told_of_itself_and_not_of_onnxruntime() -> None:
    said = driver_problem(12080, 13, "TensorRT for RTX") or ""
    assert "and this TensorRT for RTX was built for CUDA 13: update the driver to 580 or later" in said
    assert "onnxruntime" not in said


def test_what_tensorrt_for_rtx_does_not_run_on_is_told_with_what_it_does() -> None:
    said = rtx_problem(gpu((9, 0))) or ""
    assert said.startswith("cuda:1 is NVIDIA V100, compute capability 9.0, and TensorRT for RTX runs on compute capab")
    assert "8.9 (GeForce RTX 40, " in said
    assert precision_problem(Precision.INT8, "8.6") is precision_problem(Precision.FP8, "8.9") is None
    assert precision_problem(Precision.FP8, "8.6") == (
        "TensorRT for RTX has no fp8 for compute capability 8.6: take an engine in fp16 or int8"
    )
    assert rtx_problem(gpu((8, 9))) is rtx_problem(gpu((12, 0))) is None


def test_a_driver_of_the_same_cuda_or_a_newer_one_will_do() -> None:
    assert driver_problem(13000, 13) is driver_problem(13020, 13) is driver_problem(14000, 13) is None
    assert driver_problem(12020, 12) is None


def test_gpus_before_turing_are_refused() -> None:
    problem = capability_problem(gpu((7, 0)))
    assert problem
    assert problem.startswith("cuda:1 is NVIDIA V100, compute capability 7.0, and CUDA 13 needs 7.5 or later")
    assert capability_problem(gpu((7, 5))) is capability_problem(gpu((12, 0))) is None


def test_missing_libraries_are_listed_with_what_brings_them() -> None:
    there = Library(file="libc.so.6", folder="nvidia/cu13/lib", package="nvidia-something")
    missing = [
        Library(file=f"lib{name}-nowhere.so.13", folder="nvidia/cu13/lib", package=f"nvidia-{name}")
        for name in ("cublas", "cudnn")
    ]
    load_libraries([there])
    with pytest.raises(EngineUnavailableError) as caught:
        load_libraries([there, *missing])
    said = str(caught.value)
    assert "libcublas-nowhere.so.13, libcudnn-nowhere.so.13 are missing: pip install 'mexma-runtime[gpu]'" in said
    assert "(or nvidia-cublas nvidia-cudnn)" in said


def test_the_libraries_are_named_as_nvidia_names_them() -> None:
    assert {(library.file, library.package) for library in libraries(13)} == {
        ("libcudart.so.13", "nvidia-cuda-runtime"),
        ("libcublasLt.so.13", "nvidia-cublas"),
        ("libcublas.so.13", "nvidia-cublas"),
        ("libcurand.so.10", "nvidia-curand"),
        ("libcudnn.so.9", "nvidia-cudnn-cu13"),
    }
    assert {library.package for library in libraries(12)} == {
        f"nvidia-{part}-cu12" for part in ("cuda-runtime", "cublas", "curand", "cudnn")
    }


def test_without_a_driver_no_gpu_is_found() -> None:
    if has_driver():
        pytest.skip("this machine has an NVIDIA driver")
    with pytest.raises(EngineUnavailableError, match="no NVIDIA driver was found"):
        find_gpu(0, needed_cuda=13)


def test_a_gpu_that_is_not_there_is_answered_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's answers replaced: two GPUs, of which one is too old."""
    answers = {"cudaDriverGetVersion": 13000, "cudaGetDeviceCount": 2}
    found = [gpu((7, 0)), gpu((9, 0))]
    monkeypatch.setattr(cuda_checks, "call", lambda function, *_: answers[function.__name__])
    monkeypatch.setattr(cuda_checks, "_describe", lambda _, index: found[index])
    assert find_gpu(1, needed_cuda=13) == found[1]
    with pytest.raises(EngineUnavailableError, match="there is no cuda:2; this process sees cuda:1 "):
        find_gpu(2, needed_cuda=13)
    with pytest.raises(EngineUnavailableError, match=r"CUDA 13 needs 7\.5"):
        find_gpu(0, needed_cuda=13)


def test_nvidias_functions_take_what_we_give_them() -> None:
    """Without a driver each says so, and none that it was called wrongly."""
    if has_driver():
        pytest.skip("this machine has an NVIDIA driver, and its own tests")
    cudart = import_cudart()
    with pytest.raises(DeviceError, match=r"cudaSetDevice failed: cudaErrorInsufficientDriver \(35\)"):
        CudaDevice(0)
    device = device_that_is_not_there()
    event, some = cudart.cudaEvent_t(0), np.zeros(4, np.uint8)
    graph, executable = cudart.cudaGraph_t(0), cudart.cudaGraphExec_t(0)
    calls: dict[str, Callable[[], Any]] = {
        "cudaGetDevice": device.active().__enter__,
        "cudaStreamBeginCapture": lambda: device.capture(lambda: None),
        "cudaStreamEndCapture": lambda: call(cudart.cudaStreamEndCapture, device._stream),
        "cudaGraphInstantiate": lambda: call(cudart.cudaGraphInstantiate, graph, 0),
        "cudaGraphDestroy": lambda: call(cudart.cudaGraphDestroy, graph),
        "cudaGraphExecDestroy": lambda: call(cudart.cudaGraphExecDestroy, executable),
        "cudaGraphLaunch": CudaGraph(executable, device._stream).launch,
        "cudaMalloc": lambda: device.allocate(10),
        "cudaHostAlloc": lambda: device.host_bytes(10),
        "cudaEventCreateWithFlags": device.record_event,
        "cudaMemGetInfo": device.free_bytes,
        "cudaStreamDestroy": device.close,
        "cudaEventRecord": lambda: call(cudart.cudaEventRecord, event, device._stream),
        "cudaEventSynchronize": lambda: call(cudart.cudaEventSynchronize, event),
        "cudaMemsetAsync": lambda: call(cudart.cudaMemsetAsync, 1, 0, 4, device._stream),
        "cudaStreamCreateWithFlags": lambda: call(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking),
        "cudaGetDeviceProperties": lambda: call(cudart.cudaGetDeviceProperties, 0),
    }
    for name, work in calls.items():
        with pytest.raises(DeviceError, match=f"{name} failed: cudaErrorInsufficientDriver"):
            work()
    for work in (lambda: device.upload(some, 1), lambda: device.download(1, some), lambda: device.copy(1, 2, 3)):
        with pytest.raises(DeviceError, match="cudaMemcpyAsync failed: cudaErrorInsufficientDriver"):
            work()


def device_that_is_not_there() -> CudaDevice:
    """cuda:0 as it would be."""
    device = CudaDevice.__new__(CudaDevice)
    device._cudart = import_cudart()
    device._stream, device.index, device._spinning = device._cudart.cudaStream_t(0), 0, False
    device._spare = deque()
    return device


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Functions that were called, with those of their arguments that are numbers; all succeed, on cuda:1's thread."""
    called: list[Any] = []

    def answer(function: Any, *arguments: Any) -> Any:
        called.append((function.__name__, *(number for number in arguments if type(number) is int)))
        return 1 if function.__name__ == "cudaGetDevice" else None

    monkeypatch.setattr(cuda_device, "call", answer)
    return called


def test_what_is_captured_is_instantiated_and_the_stream_is_left_as_it_was(calls: list[Any]) -> None:
    graph = device_that_is_not_there().capture(lambda: calls.append("work"))
    assert calls == [
        ("cudaStreamBeginCapture",),
        "work",
        ("cudaStreamEndCapture",),
        ("cudaGraphInstantiate", 0),
        ("cudaGraphDestroy",),
    ]
    calls.clear()
    graph.launch()
    assert calls == [("cudaGraphLaunch",)]


def test_a_capture_that_fails_ends(calls: list[Any]) -> None:
    def fail() -> None:
        raise DeviceMemoryError("none left")

    with pytest.raises(DeviceMemoryError, match="none left"):
        device_that_is_not_there().capture(fail)
    assert calls == [("cudaStreamBeginCapture",), ("cudaStreamEndCapture",), ("cudaGraphDestroy",)]


def test_a_thread_keeps_its_own_gpu(calls: list[Any]) -> None:
    device = device_that_is_not_there()
    with device.active():
        calls.append("work")
    assert calls == [("cudaGetDevice",), ("cudaSetDevice", 0), "work", ("cudaSetDevice", 1)]
    calls.clear()
    device.index = 1
    with device.active():
        calls.append("work")
    assert calls == [("cudaGetDevice",), ("cudaSetDevice", 1), "work"]


def session_of(*nodes: onnx.NodeProto) -> Any:
    """On the CPU provider, which keeps them as they are."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def test_placement_is_read_from_onnxruntime() -> None:
    """The same check with the provider that is here in the GPU's place."""
    session = session_of(
        helper.make_node("Abs", ["x"], ["z"], name="layer.0.abs"), helper.make_node("Neg", ["z"], ["y"], name="neg")
    )
    require_placement(session, Path("model.onnx"), "CPUExecutionProvider")
    with pytest.raises(EngineUnavailableError) as caught:
        require_placement(session, Path("model.onnx"), onnxruntime_cuda.PROVIDER)
    said = str(caught.value)
    assert "model.onnx: CUDAExecutionProvider was asked for, and nodes were placed elsewhere: " in said
    assert "layer.0.abs (Abs) on CPUExecutionProvider, neg (Neg) on CPUExecutionProvider" in said
    assert "Providers of this session: CPUExecutionProvider" in said
