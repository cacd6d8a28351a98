"""A plan opened as a backend, on the stream and in the buckets of the CUDA backend; of either library of TensorRT's."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn, Protocol

from mexma_runtime.backends.gpu.assembly import assemble, layout_for
from mexma_runtime.backends.gpu.backend import DeviceBackend, Worker
from mexma_runtime.backends.gpu.cuda_checks import Gpu, find_gpu
from mexma_runtime.backends.gpu.cuda_device import CudaDevice, call, import_cudart
from mexma_runtime.backends.gpu.plans.session import PlanSession
from mexma_runtime.backends.options import GpuOptions, Graphs
from mexma_runtime.backends.requirements import require_names, require_version
from mexma_runtime.backends.tensorrt_library import Library
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.bundle.plans import AnyPlatform, Plan, find_plan
from mexma_runtime.bundle.tuning import Tuning
from mexma_runtime.errors import UsageError


class OpenSession(Protocol):
    """What opens a plan's session."""

    def __call__(self, path: Path, device: CudaDevice, plan: Plan, gpu: Gpu) -> PlanSession:
        """Called in the thread that will run it."""


def ready(library: Library, index: int) -> tuple[str, Gpu]:
    """Version of the installed `library`, and the GPU `index`; an error where one of them is missing."""
    module, cudart = library.load(), import_cudart()
    gpu = find_gpu(index, needed_cuda=int(call(cudart.cudaRuntimeGetVersion)) // 1000, needed_by=library.title)
    return str(module.__version__), gpu


def open_plan(
    library: Library,
    bundle: Bundle,
    engine: EngineEntry,
    options: GpuOptions,
    gpu: Gpu,
    version: str,
    platform: AnyPlatform,
    open_session: OpenSession,
) -> DeviceBackend:
    """Open the plan of `engine` for `platform` on `gpu`; EngineUnavailableError says what keeps it from working."""
    require_version(engine, library.name, version, extra=library.name)
    for name in ("attention", "memory_limit"):
        if (value := getattr(options, name)) is not None:
            raise UsageError(f"{name}={value} is not for {library.title}, whose plans have it built in: leave it out")
    plan, path = find_plan(bundle.folder, engine, platform)
    worker = Worker(f"{library.name}:{gpu.index}")

    def opened() -> DeviceBackend:
        spinning = options.spinning is not False
        device = CudaDevice(gpu.index, spinning=spinning)
        session = open_session(path, device, plan, gpu)
        names, feedable = session.names, layout_for(bundle.manifest, engine).names
        # The library lists inputs in an order of its own.
        inputs = sorted(names["inputs"], key=lambda name: engine.inputs.index(name) if name in engine.inputs else -1)
        require_names(path, engine, inputs, names["outputs"], feedable=feedable)
        backend = assemble(
            bundle,
            engine,
            session,
            device,
            worker,
            graphs=options.graphs or Graphs.AT_LOAD,
            tuning=options.tuning or Tuning(max_batch_tokens=plan.max_batch_tokens),
            version=version,
            processor=gpu.description,
            spinning=spinning,
            make_value=_no_values,
            most_rows=plan.max_batch_rows,
        )
        session.keep_kernels()
        return backend

    try:
        return worker.run(opened)
    except BaseException:
        worker.close(lambda: None)
        raise


def _no_values(shape: tuple[int, ...]) -> NoReturn:
    raise UsageError("vectors that stay on the device come from packed engines: load dialect='packed'")
