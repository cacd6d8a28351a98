"""onnxruntime on an NVIDIA GPU: a session, or two, on one stream of ours, captured graphs for small batches."""

from __future__ import annotations

import dataclasses
import functools
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mexma_runtime.backends.gpu.assembly import assemble, layout_for
from mexma_runtime.backends.gpu.attention import open_with, why_no_flash
from mexma_runtime.backends.gpu.backend import DeviceBackend, Worker
from mexma_runtime.backends.gpu.cuda_checks import Gpu, find_gpu, libraries, load_libraries
from mexma_runtime.backends.gpu.cuda_device import CudaDevice
from mexma_runtime.backends.gpu.engine import is_out_of_memory
from mexma_runtime.backends.gpu.session import Session
from mexma_runtime.backends.gpu.shared_weights import SharedWeights
from mexma_runtime.backends.onnxruntime_library import NAME, SILENT, OrtSession, import_onnxruntime, open_session
from mexma_runtime.backends.options import Attention, GpuOptions, Graphs
from mexma_runtime.backends.requirements import require_names, require_version, version_key
from mexma_runtime.backends.support import MIN_ONNXRUNTIME_GPU
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.linked_files import map_graph
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.bundle.tuning import read_tuning
from mexma_runtime.errors import DeviceMemoryError, EngineUnavailableError, UsageError
from mexma_runtime.types import Dialect

PROVIDER = "CUDAExecutionProvider"
SDPA_KERNELS = {Attention.EFFICIENT: 2, Attention.FLASH: 1 | 2}
"""onnxruntime's bits of its kernels that read packed tokens by their bounds alone; fp32 has no flash kernel."""
WARNING = 2
"""Log severity: onnxruntime's own."""


def open_engine(bundle: Bundle, engine: EngineEntry, options: GpuOptions, index: int) -> DeviceBackend:
    """Open a session for `engine` on the GPU `index`; EngineUnavailableError says what keeps it from working."""
    library, gpu = _ready(index)
    require_version(engine, NAME, library, extra="gpu")
    if options.attention is not None and engine.dialect is not Dialect.PACKED:
        raise UsageError(f"attention={options.attention} is for packed engines, and {engine.name} was chosen")
    worker = Worker(f"cuda:{index}")
    try:
        return worker.run(_open, bundle, engine, options, gpu, worker)
    except BaseException:
        worker.close(lambda: None)
        raise


def library_version() -> str:
    """Version of the installed onnxruntime; an error where it has no CUDA provider, or its libraries are missing."""
    return _ready(0)[0]


def _ready(index: int) -> tuple[str, Gpu]:
    """The same, and the GPU `index`, with the libraries loaded."""
    ort = _import_onnxruntime()
    providers = ort.get_available_providers()
    if PROVIDER not in providers:
        raise EngineUnavailableError(
            f"{PROVIDER} was asked for, and the installed onnxruntime {ort.__version__} has {', '.join(providers)}: "
            "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'mexma-runtime[gpu]'"
        )
    if version_key(ort.__version__) < version_key(MIN_ONNXRUNTIME_GPU):
        raise EngineUnavailableError(
            f"engines on a GPU need onnxruntime-gpu {MIN_ONNXRUNTIME_GPU} or later, {ort.__version__} is installed: "
            "pip install --upgrade 'mexma-runtime[gpu]'"
        )
    cuda = int(str(ort.cuda_version or "13").partition(".")[0])
    gpu = find_gpu(index, needed_cuda=cuda)
    load_libraries(libraries(cuda))
    return str(ort.__version__), gpu


def obstacle(engine: EngineEntry) -> None:
    """Nothing that can be told without the GPU."""


def _open(bundle: Bundle, entry: EngineEntry, options: GpuOptions, gpu: Gpu, worker: Worker) -> DeviceBackend:
    """In the thread that will run it."""
    ort, spinning = _import_onnxruntime(), options.spinning is not False
    device = CudaDevice(gpu.index, spinning=spinning)
    tuning = options.tuning or read_tuning(bundle.folder, gpu.description, entry)
    is_packed = entry.dialect is Dialect.PACKED

    def open_session(kernel: Attention, memory_limit: int | None, weights: SharedWeights | None) -> Session:
        limited = dataclasses.replace(options, attention=kernel, memory_limit=memory_limit)
        session = _session(bundle, entry, device, limited, weights)
        inputs, outputs = ([value.name for value in found] for found in (session.get_inputs(), session.get_outputs()))
        names = layout_for(bundle.manifest, entry).names
        require_names(bundle.path(entry.file), entry, inputs, outputs, feedable=names)
        return OrtSession(session, device.kind, device.index, keeps=weights)

    def share_weights() -> SharedWeights:
        return SharedWeights(map_graph(bundle, entry).weights_read_in_runs(), device)

    def assembled(session: Session, attention: str) -> DeviceBackend:
        return assemble(
            bundle,
            entry,
            session,
            device,
            worker,
            graphs=options.graphs or Graphs.AT_LOAD,
            tuning=tuning,
            version=str(ort.__version__),
            processor=gpu.description,
            spinning=spinning,
            make_value=lambda shape: ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, "cuda", gpu.index),
            attention=attention if is_packed else "",
        )

    return open_with(
        options.attention or Attention.EFFICIENT,
        open_session,
        share_weights,
        assembled,
        device,
        no_flash=why_no_flash(entry.precision, gpu),
        memory_limit=options.memory_limit,
        flash_above_mean_tokens=tuning.flash_above_mean_tokens,
        max_tokens=bundle.manifest.text.max_tokens,
    )


def _session(
    bundle: Bundle, entry: EngineEntry, device: CudaDevice, options: GpuOptions, weights: SharedWeights | None
) -> Any:
    """A session whose nodes are all on the GPU."""
    ort, session, path = _import_onnxruntime(), None, bundle.path(entry.file)
    new = functools.partial(_new_session, bundle, entry, device, options, weights)
    try:
        session = new(graphs=options.graphs is not Graphs.NEVER)
    except Exception as error:
        if is_out_of_memory(error):
            raise DeviceMemoryError(
                f"cuda:{device.index}: no room for the weights of {path.name} ({error}): raise memory_limit, or make "
                "room on the device"
            ) from error
        # Where a node is on the CPU, graphs are refused before its name can be read.
        with suppress(Exception):
            session = new(graphs=False)
        if session is not None:
            require_placement(session, path, PROVIDER)
        raise EngineUnavailableError(f"{path}: {NAME} {ort.__version__} cannot open this graph: {error}") from error
    session.disable_fallback()
    require_placement(session, path, PROVIDER)
    return session


def _new_session(
    bundle: Bundle,
    entry: EngineEntry,
    device: CudaDevice,
    options: GpuOptions,
    weights: SharedWeights | None,
    *,
    graphs: bool,
) -> Any:
    ort = _import_onnxruntime()
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = SILENT
    # Patterns are kept for each shape, and shapes are without number.
    settings.enable_mem_pattern = False
    for name, value in weights.values.items() if weights else ():
        settings.add_initializer(name, value)
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    provider = {
        "device_id": str(device.index),
        "user_compute_stream": str(device.stream),
        # The graphs are ours; but with it no run leaves a call in the stream that frees memory of the host.
        "enable_cuda_graph": "1" if graphs else "0",
        "arena_extend_strategy": "kSameAsRequested",
        # Sums of LayerNorm in fp32.
        "enable_skip_layer_norm_strict_mode": "1",
        "use_tf32": "0",
    }
    if entry.dialect is Dialect.PACKED:
        provider["sdpa_kernel"] = str(SDPA_KERNELS[options.attention or Attention.EFFICIENT])
    if options.memory_limit is not None:
        provider["gpu_mem_limit"] = str(options.memory_limit)
    # It warns of a plugin that nobody has asked for, before it reads the session's own severity.
    ort.set_default_logger_severity(SILENT)
    try:
        return open_session(bundle, entry, settings, providers=[(PROVIDER, provider)])
    finally:
        ort.set_default_logger_severity(WARNING)


def require_placement(session: Any, path: Path, provider: str) -> None:
    """EngineUnavailableError unless onnxruntime has placed every node of the session's graph on `provider`."""
    placed: dict[str, list[Any]] = {}
    for part in session.get_provider_graph_assignment_info():
        placed.setdefault(part.ep_name, []).extend(part.get_nodes())
    elsewhere = [
        f"{node.name} ({node.op_type}) on {name}"
        for name, nodes in placed.items()
        if name != provider
        for node in nodes
    ]
    if elsewhere or provider not in placed:
        listed = ", ".join(elsewhere[:10]) + (f" and {len(elsewhere) - 10} more" if len(elsewhere) > 10 else "")
        raise EngineUnavailableError(
            f"{path}: {provider} was asked for, and nodes were placed elsewhere: {listed or 'all'}. Providers of this "
            f"session: {', '.join(session.get_providers())}. Nothing was run there instead; `mexma doctor` shows what "
            "this machine has"
        )


def _import_onnxruntime() -> Any:
    return import_onnxruntime(package="onnxruntime-gpu", needed_for="running an engine on a GPU", extra="gpu")
