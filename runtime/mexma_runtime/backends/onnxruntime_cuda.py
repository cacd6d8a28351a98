"""onnxruntime on an NVIDIA GPU: a session on one stream of ours, captured graphs for small batches."""

from __future__ import annotations

import functools
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mexma_runtime.backends import device_backend
from mexma_runtime.backends.base import BackendInfo, BackendOptions, Graphs
from mexma_runtime.backends.cuda_checks import Gpu, find_gpu, libraries, load_libraries
from mexma_runtime.backends.cuda_device import CudaDevice
from mexma_runtime.backends.device_backend import DeviceBackend, Worker
from mexma_runtime.backends.device_engine import N_ROOMS, DeviceEngine, is_out_of_memory
from mexma_runtime.backends.lattice import packed_lattice, padded_lattice
from mexma_runtime.backends.layouts import Layout, PackedLayout, PaddedLayout, Shape
from mexma_runtime.backends.requirements import require_names, require_version, version_key
from mexma_runtime.batching import BatchPolicy, Grouping
from mexma_runtime.bundle import Bundle
from mexma_runtime.errors import DeviceMemoryError, EngineUnavailableError, MissingDependencyError
from mexma_runtime.manifest import EngineEntry
from mexma_runtime.tuning import Tuning, read_tuning
from mexma_runtime.types import Dialect, Precision

NAME = "onnxruntime"
PROVIDER = "CUDAExecutionProvider"
LEAST_VERSION = "1.31"
"""Earlier ones wait for the device after each replay of a graph, and pad nothing but what this was written for."""
MOST_ROWS = 8192
"""Sentences in a batch."""
LEAST_BATCH_TOKENS = 1024
MOST_GRAPH_BYTES = 1 << 30
"""Of the device's memory, for captured graphs."""
SDPA_KERNELS = 1 | 2
"""onnxruntime's FLASH_ATTENTION and EFFICIENT_ATTENTION: those that read packed tokens by their bounds alone."""
SILENT = 4
"""Log severity `fatal`: what goes wrong is raised, nothing is printed."""


def open_engine(bundle: Bundle, engine: EngineEntry, options: BackendOptions) -> DeviceBackend:
    """Open a session for `engine` on `options.device`; EngineUnavailableError says what keeps it from working."""
    if problem := obstacle(engine):
        raise EngineUnavailableError(problem)
    library = library_version()
    require_version(engine, NAME, library, extra="gpu")
    index = int(options.device.partition(":")[2] or 0)
    gpu = find_gpu(index, needed_cuda=_cuda_of_library())
    worker = Worker(f"cuda:{index}")
    try:
        return worker.run(_open, bundle, engine, options, gpu, worker)
    except BaseException:
        worker.close(lambda: None)
        raise


def library_version() -> str:
    """Version of the installed onnxruntime; an error where it has no CUDA provider, or its libraries are missing."""
    ort = _import_onnxruntime()
    providers = ort.get_available_providers()
    if PROVIDER not in providers:
        raise EngineUnavailableError(
            f"{PROVIDER} was asked for, and the installed onnxruntime {ort.__version__} has {', '.join(providers)}: "
            "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'mexma-runtime[gpu]'"
        )
    if version_key(ort.__version__) < version_key(LEAST_VERSION):
        raise EngineUnavailableError(
            f"engines on a GPU need onnxruntime-gpu {LEAST_VERSION} or later, {ort.__version__} is installed: "
            "pip install --upgrade 'mexma-runtime[gpu]'"
        )
    find_gpu(0, needed_cuda=_cuda_of_library())
    load_libraries(libraries(_cuda_of_library()))
    return str(ort.__version__)


def obstacle(engine: EngineEntry) -> str | None:
    """int8 engines: onnxruntime has no kernels for their products on CUDA."""
    if engine.precision is Precision.INT8:
        return (
            f"engine {engine.name} is for CPUs: onnxruntime computes its int8 products on CUDA in float, or not at "
            "all: use an fp16 engine"
        )
    return None


def _open(bundle: Bundle, entry: EngineEntry, options: BackendOptions, gpu: Gpu, worker: Worker) -> DeviceBackend:
    """In the thread that will run it."""
    manifest = bundle.manifest
    text = manifest.text
    is_packed = entry.dialect is Dialect.PACKED
    layout: Layout = PackedLayout(text, manifest.pooling_mode) if is_packed else PaddedLayout(text)
    tuning = read_tuning(bundle.folder, gpu.description, entry)
    device = CudaDevice(gpu.index, spinning=options.spinning is not False)
    path = bundle.path(entry.file)
    session = _session(path, device, options)
    inputs, outputs = ([value.name for value in found] for found in (session.get_inputs(), session.get_outputs()))
    one = Shape(n_sentences=1, longest=1, n_tokens=1)
    require_names(path, entry, inputs, outputs, feedable={*layout.specs(one), *layout.constant_specs(one)})
    engine, max_tokens = _largest_engine(session, device, layout, entry, bundle, tuning)

    sentences = device_backend.probe(manifest.model.vocab_size, text.max_tokens)
    expected = device_backend.check_company(engine, sentences, dim=manifest.dim, precision=entry.precision)
    if options.graphs is not Graphs.NEVER:
        lattice = packed_lattice if is_packed else padded_lattice
        device_backend.add_buckets(
            engine,
            lattice(text.max_tokens, up_to_tokens=tuning.graph_up_to_tokens),
            sentences,
            expected,
            precision=entry.precision,
            at_load=options.graphs is Graphs.AT_LOAD,
            most_bytes=MOST_GRAPH_BYTES,
        )
    info = BackendInfo(
        backend=NAME,
        version=str(_import_onnxruntime().__version__),
        device=f"cuda:{gpu.index}",
        providers=tuple(session.get_providers()),
        n_threads=1,
        spinning=options.spinning is not False,
        processor=gpu.description,
        policy=BatchPolicy(
            max_batch_tokens=max_tokens,
            max_batch_rows=MOST_ROWS,
            grouping=Grouping.IN_ORDER if is_packed else Grouping.PADDED,
        ),
        n_in_flight=N_ROOMS,
    )
    make_value = functools.partial(
        _import_onnxruntime().OrtValue.ortvalue_from_shape_and_type,
        element_type=np.float32,
        device_type="cuda",
        device_id=gpu.index,
    )
    return DeviceBackend(worker, engine, info, make_value)


def _largest_engine(
    session: Any, device: CudaDevice, layout: Layout, entry: EngineEntry, bundle: Bundle, tuning: Tuning
) -> tuple[DeviceEngine, int]:
    """An engine with room for the largest batch that the device's memory holds, and that batch's tokens.

    The batch is run once: afterwards onnxruntime's arena has all that any batch needs, and stays as large.
    """
    text, max_tokens = bundle.manifest.text, tuning.max_batch_tokens
    while True:
        try:
            capacity = Shape(n_sentences=min(MOST_ROWS, max_tokens), longest=text.max_tokens, n_tokens=max_tokens)
            engine = DeviceEngine(session, device, layout, entry, dim=bundle.manifest.dim, capacity=capacity)
            engine.run_largest()
        except DeviceMemoryError as error:
            max_tokens //= 2
            if max_tokens < max(LEAST_BATCH_TOKENS, text.max_tokens):
                raise DeviceMemoryError(
                    f"cuda:{device.index}: no room for a batch of {2 * max_tokens} tokens beside the weights "
                    f"({error}): raise memory_limit, or make room on the device"
                ) from error
        else:
            return engine, max_tokens


def _session(path: Path, device: CudaDevice, options: BackendOptions) -> Any:
    """A session whose nodes are all on the GPU."""
    ort, session = _import_onnxruntime(), None
    try:
        session = _new_session(path, device, options, graphs=options.graphs is not Graphs.NEVER)
    except Exception as error:
        if is_out_of_memory(error):
            raise DeviceMemoryError(
                f"cuda:{device.index}: no room for the weights of {path.name} ({error}): raise memory_limit, or make "
                "room on the device"
            ) from error
        # Where a node is on the CPU, graphs are refused before its name can be read.
        with suppress(Exception):
            session = _new_session(path, device, options, graphs=False)
        if session is not None:
            require_placement(session, path, PROVIDER)
        raise EngineUnavailableError(f"{path}: {NAME} {ort.__version__} cannot open this graph: {error}") from error
    session.disable_fallback()
    require_placement(session, path, PROVIDER)
    return session


def _new_session(path: Path, device: CudaDevice, options: BackendOptions, *, graphs: bool) -> Any:
    ort = _import_onnxruntime()
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = SILENT
    # Patterns are kept for each shape, and shapes are without number.
    settings.enable_mem_pattern = False
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    provider = {
        "device_id": str(device.index),
        "user_compute_stream": str(device.stream),
        "enable_cuda_graph": "1" if graphs else "0",
        "arena_extend_strategy": "kSameAsRequested",
        "sdpa_kernel": str(SDPA_KERNELS),
        # Sums of LayerNorm in fp32.
        "enable_skip_layer_norm_strict_mode": "1",
        "use_tf32": "0",
    }
    if options.memory_limit is not None:
        provider["gpu_mem_limit"] = str(options.memory_limit)
    return ort.InferenceSession(str(path), settings, providers=[(PROVIDER, provider)])


def require_placement(session: Any, path: Path, provider: str) -> None:
    """EngineUnavailableError unless onnxruntime has placed every node of the session's graph on `provider`."""
    placed = {part.ep_name: part.get_nodes() for part in session.get_provider_graph_assignment_info()}
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


def _cuda_of_library() -> int:
    """Major version of the CUDA that the installed onnxruntime was built for."""
    return int(str(_import_onnxruntime().cuda_version or "13").partition(".")[0])


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        if error.name == NAME and isinstance(error, ModuleNotFoundError):
            raise MissingDependencyError(
                "onnxruntime-gpu", needed_for="running an engine on a GPU", extra="gpu"
            ) from error
        raise EngineUnavailableError(f"{NAME} is installed but cannot be imported: {error}") from error
    return onnxruntime
