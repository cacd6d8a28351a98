"""TensorRT for RTX on an NVIDIA GPU: plans for compute capabilities, whose kernels it finishes on the GPU itself."""

from __future__ import annotations

from pathlib import Path

from mexma_runtime.backends.gpu.backend import DeviceBackend
from mexma_runtime.backends.gpu.cuda_checks import Gpu
from mexma_runtime.backends.gpu.cuda_device import CudaDevice
from mexma_runtime.backends.gpu.plans.backend import open_plan, ready
from mexma_runtime.backends.gpu.plans.rtx_session import RtxSession
from mexma_runtime.backends.options import GpuOptions
from mexma_runtime.backends.tensorrt_library import TENSORRT_RTX
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.bundle.plans import Plan, RtxPlatform, words_of
from mexma_runtime.bundle.rtx_capabilities import CAPABILITIES, listed_capabilities
from mexma_runtime.errors import EngineUnavailableError
from mexma_runtime.types import Precision


def open_engine(bundle: Bundle, engine: EngineEntry, options: GpuOptions, index: int) -> DeviceBackend:
    """Open the plan of `engine` for the GPU `index`; EngineUnavailableError says what keeps it from working."""
    version, gpu = _ready(index)
    if problem := precision_problem(engine.precision, gpu.capability_text):
        raise EngineUnavailableError(f"engine {engine.name} on {gpu.description}: {problem}")
    platform = RtxPlatform(capabilities=[gpu.capability_text], tensorrt_rtx=version)
    return open_plan(TENSORRT_RTX, bundle, engine, options, gpu, version, platform, _open_session)


def library_version() -> str:
    """Version of the installed TensorRT for RTX; an error where it, or a GPU to use it on, is missing."""
    return _ready(0)[0]


def capability_problem(gpu: Gpu) -> str | None:
    """Why no plan can be for `gpu`; None: one can."""
    if gpu.capability_text in {capability.number for capability in CAPABILITIES}:
        return None
    return (
        f"cuda:{gpu.index} is {gpu.description}, and TensorRT for RTX runs on compute capability "
        f"{listed_capabilities()}: use another backend there, such as onnxruntime"
    )


def precision_problem(precision: Precision, capability: str) -> str | None:
    """Why no plan of `precision` can be for GPUs of `capability`; None: one can."""
    able = next(known.precisions for known in CAPABILITIES if known.number == capability)
    if precision in able:
        return None
    others = " or ".join(sorted(able))
    return f"TensorRT for RTX has no {precision} for compute capability {capability}: take an engine in {others}"


def obstacle(engine: EngineEntry) -> None:
    """Nothing that can be told without the GPU."""


def _ready(index: int) -> tuple[str, Gpu]:
    version, gpu = ready(TENSORRT_RTX, index)
    if problem := capability_problem(gpu):
        raise EngineUnavailableError(problem)
    return version, gpu


def _open_session(path: Path, device: CudaDevice, plan: Plan, gpu: Gpu) -> RtxSession:
    return RtxSession(path, device, device.stream, plan.profiles, kernels=path.with_name(f"{words_of(gpu.name)}.cache"))
