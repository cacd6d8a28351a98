"""TensorRT on an NVIDIA GPU: plans that were built for it."""

from __future__ import annotations

from pathlib import Path

from mexma_runtime.backends.gpu.backend import DeviceBackend
from mexma_runtime.backends.gpu.cuda_checks import Gpu
from mexma_runtime.backends.gpu.cuda_device import CudaDevice, call, import_cudart
from mexma_runtime.backends.gpu.plans.backend import open_plan, ready
from mexma_runtime.backends.gpu.plans.session import PlanSession
from mexma_runtime.backends.options import GpuOptions
from mexma_runtime.backends.tensorrt_library import TENSORRT
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.bundle.plans import Plan, Platform


def open_engine(bundle: Bundle, engine: EngineEntry, options: GpuOptions, index: int) -> DeviceBackend:
    """Open the plan of `engine` for the GPU `index`; EngineUnavailableError says what keeps it from working."""
    version, gpu = ready(TENSORRT, index)
    return open_plan(TENSORRT, bundle, engine, options, gpu, version, platform_of(gpu, version), _open_session)


def library_version() -> str:
    """Version of the installed TensorRT; an error where it, or a GPU to use it on, is missing."""
    return ready(TENSORRT, 0)[0]


def platform_here(index: int) -> Platform:
    """What plans are built for on this machine's GPU `index`, which becomes the calling thread's."""
    version, gpu = ready(TENSORRT, index)
    call(import_cudart().cudaSetDevice, index)
    return platform_of(gpu, version)


def platform_of(gpu: Gpu, version: str) -> Platform:
    """What a plan has to be built for, to run there."""
    return Platform(gpu=gpu.name, capability=gpu.capability_text, tensorrt=version)


def obstacle(engine: EngineEntry) -> None:
    """Nothing that can be told without the GPU."""


def _open_session(path: Path, device: CudaDevice, plan: Plan, gpu: Gpu) -> PlanSession:
    return PlanSession(TENSORRT, path, device, device.stream, plan.profiles)
