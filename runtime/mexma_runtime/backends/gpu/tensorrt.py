"""TensorRT on an NVIDIA GPU: a plan that was built for it, on the stream, buckets and graphs of the CUDA backend."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from mexma_runtime.backends.gpu.assembly import assemble, layout_for
from mexma_runtime.backends.gpu.backend import DeviceBackend, Worker
from mexma_runtime.backends.gpu.cuda_checks import Gpu, find_gpu
from mexma_runtime.backends.gpu.cuda_device import CudaDevice, call, import_cudart
from mexma_runtime.backends.gpu.tensorrt_session import PlanSession
from mexma_runtime.backends.options import GpuOptions, Graphs
from mexma_runtime.backends.requirements import require_names, require_version
from mexma_runtime.backends.tensorrt_library import NAME, import_tensorrt
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.bundle.plans import Plan, Platform, find_plan
from mexma_runtime.bundle.tuning import Tuning
from mexma_runtime.errors import UsageError


def open_engine(bundle: Bundle, engine: EngineEntry, options: GpuOptions, index: int) -> DeviceBackend:
    """Open the plan of `engine` for the GPU `index`; EngineUnavailableError says what keeps it from working."""
    version, gpu = _ready(index)
    require_version(engine, NAME, version, extra="tensorrt")
    for name in ("attention", "memory_limit"):
        if (value := getattr(options, name)) is not None:
            raise UsageError(f"{name}={value} is not for TensorRT, whose plans have it built in: leave it out")
    plan, path = find_plan(bundle.folder, engine, platform_of(gpu, version))
    worker = Worker(f"tensorrt:{index}")
    try:
        return worker.run(_open, bundle, engine, options, gpu, worker, plan, path)
    except BaseException:
        worker.close(lambda: None)
        raise


def library_version() -> str:
    """Version of the installed TensorRT; an error where it, or a GPU to use it on, is missing."""
    return _ready(0)[0]


def platform_here(index: int) -> Platform:
    """What plans are built for on this machine's GPU `index`, which becomes the calling thread's."""
    version, gpu = _ready(index)
    call(import_cudart().cudaSetDevice, index)
    return platform_of(gpu, version)


def platform_of(gpu: Gpu, version: str) -> Platform:
    """What a plan has to be built for, to run there."""
    return Platform(gpu=gpu.name, capability=f"{gpu.capability[0]}.{gpu.capability[1]}", tensorrt=version)


def obstacle(engine: EngineEntry) -> None:
    """Nothing that can be told without the GPU."""


def _ready(index: int) -> tuple[str, Gpu]:
    tensorrt, cudart = import_tensorrt(), import_cudart()
    gpu = find_gpu(index, needed_cuda=int(call(cudart.cudaRuntimeGetVersion)) // 1000)
    return str(tensorrt.__version__), gpu


def _open(
    bundle: Bundle,
    entry: EngineEntry,
    options: GpuOptions,
    gpu: Gpu,
    worker: Worker,
    plan: Plan,
    path: Path,
) -> DeviceBackend:
    """In the thread that will run it."""
    spinning = options.spinning is not False
    device = CudaDevice(gpu.index, spinning=spinning)
    session = PlanSession(path, device, device.stream, plan.profiles)
    names, feedable = session.names, layout_for(bundle.manifest, entry).names
    # TensorRT lists inputs in an order of its own.
    inputs = sorted(names["inputs"], key=lambda name: entry.inputs.index(name) if name in entry.inputs else -1)
    require_names(path, entry, inputs, names["outputs"], feedable=feedable)
    return assemble(
        bundle,
        entry,
        session,
        device,
        worker,
        graphs=options.graphs or Graphs.AT_LOAD,
        tuning=options.tuning or Tuning(max_batch_tokens=plan.max_batch_tokens),
        version=plan.target.tensorrt,
        processor=gpu.description,
        spinning=spinning,
        make_value=_no_values,
        most_rows=plan.max_batch_rows,
    )


def _no_values(shape: tuple[int, ...]) -> NoReturn:
    raise UsageError("vectors that stay on the device come from packed engines: load dialect='packed'")
