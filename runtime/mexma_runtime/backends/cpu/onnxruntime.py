"""onnxruntime on the CPU: groups of equal length, no padding, rows written straight into the caller's array."""

from __future__ import annotations

import functools
import time
from typing import Any

import numpy as np

from mexma_runtime.backends.base import BackendInfo, OnRows
from mexma_runtime.backends.cpu.attention import reason_for_all_scores, require_memory, unmasked
from mexma_runtime.backends.cpu.host import HostBackend
from mexma_runtime.backends.onnxruntime_library import NAME, SILENT, import_onnxruntime, open_session, run_options
from mexma_runtime.backends.options import CpuOptions
from mexma_runtime.backends.padding import padded_inputs
from mexma_runtime.backends.requirements import require_names, require_version, saturates
from mexma_runtime.batching import BatchPolicy, Grouping, make_batches
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry, Manifest
from mexma_runtime.errors import EngineUnavailableError, MexmaError
from mexma_runtime.hardware import default_threads, describe_processor, detect_hardware
from mexma_runtime.types import Ragged, Vectors
from mexma_runtime.vectors import rows_to_fill

PROVIDER = "CPUExecutionProvider"
POLICY = BatchPolicy(max_batch_tokens=512, grouping=Grouping.EQUAL)
"""Larger batches gain nothing on a CPU, and padding only costs."""
SHRINKING = {"memory.enable_memory_arena_shrinkage": "cpu:0"}
"""Of a run: else the arena would keep what a long sentence took."""
NO_GRAPH = {"gpu_graph_id": "-1"}
"""Of a run: where it is not set, onnxruntime 1.31 throws an exception for it and catches that, at each run."""
SLOWER_FUSIONS = ["SkipLayerNormFusion", "BiasGeluFusion"]
"""What onnxruntime would fuse of standard operators, and takes longer for in int8 graphs (docs/measured.md)."""


def open_engine(bundle: Bundle, engine: EngineEntry, options: CpuOptions) -> OnnxRuntimeCpu:
    """Open a session for `engine`."""
    version = library_version()
    require_version(engine, NAME, version, extra="cpu")
    hardware = detect_hardware()
    n_threads = options.n_threads or default_threads(hardware)
    # Threads that wait busily would use up a quota that others could compute with.
    spinning = hardware.cpu_quota is None if options.spinning is None else options.spinning
    path = bundle.path(engine.file)
    try:
        settings = {
            "session.intra_op.allow_spinning": "1" if spinning else "0",
            # Weights become uint8, whose products with uint8 onnxruntime sums exactly, and more slowly.
            "session.x64quantprecision": "1" if saturates(engine, hardware.instruction_sets) else "0",
            # Around fp16 all products are of floats: so weights become floats once, not at each run. It would also move
            # floats of 8 bits in front of operators that take none, and refuse what it has made.
            "session.disable_quant_qdq": "1" if engine.is_quantized_around_fp16 else "0",
        }
        session = _session(bundle, engine, n_threads, settings)
    except Exception as error:
        raise EngineUnavailableError(f"{path}: {NAME} {version} cannot open this graph: {error}") from error
    inputs, outputs = ([value.name for value in found] for found in (session.get_inputs(), session.get_outputs()))
    require_names(path, engine, inputs, outputs)
    info = BackendInfo(
        backend=NAME,
        version=version,
        device="cpu",
        providers=tuple(session.get_providers()),
        n_threads=n_threads,
        spinning=spinning,
        processor=describe_processor(),
        policy=POLICY,
    )
    return OnnxRuntimeCpu(session, engine=engine, manifest=bundle.manifest, info=info)


class OnnxRuntimeCpu(HostBackend):
    """An open session. `run` is called by one thread at a time."""

    def __init__(self, session: Any, *, engine: EngineEntry, manifest: Manifest, info: BackendInfo) -> None:
        self._session, self._binding = session, session.io_binding()
        self._engine, self._manifest, self.info = engine, manifest, info
        self._reason_for_all_scores = reason_for_all_scores()
        self._options, self._shrinking = run_options(NO_GRAPH), run_options(NO_GRAPH | SHRINKING)
        self.copy_s = self.compute_s = 0.0

    def run(self, batch: Ragged, out: Vectors, on_rows: OnRows | None = None) -> None:
        """Embed `batch` into `out`: float32 `(n, dim)`, C-contiguous; as pooled. The wrapping costs about 0.03 ms."""
        start_s = time.perf_counter()
        out = rows_to_fill(out, len(batch), self._manifest.dim)
        if batch.ids.size != len(batch) * batch.lengths.max(initial=0):  # the graph was opened without its mask
            for rows in make_batches(batch.lengths, POLICY):
                part = np.empty((rows.size, self._manifest.dim), dtype=np.float32)
                self.run(batch.take(rows), part)
                out[rows] = part
            return
        options, binding = self._options, self._binding
        if batch.ids.size > POLICY.max_batch_tokens:  # one long sentence
            if self._reason_for_all_scores:
                require_memory(batch.ids.size, self._manifest.model.n_heads, self._reason_for_all_scores)
            options = self._shrinking
        arrays = padded_inputs(batch, self._manifest.text)
        try:
            for name in self._engine.inputs:
                binding.bind_cpu_input(name, arrays[name])
            binding.bind_output(self._engine.output, "cpu", 0, np.float32, out.shape, out.ctypes.data)
            bound_s = time.perf_counter()
            self._session.run_with_iobinding(binding, options)
            computed_s = time.perf_counter()
        except Exception as error:
            shape = "x".join(map(str, arrays["input_ids"].shape))
            raise MexmaError(f"{self._engine.file}: {NAME} failed on a batch of {shape} tokens: {error}") from error
        finally:
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()
        self.compute_s += computed_s - bound_s
        self.copy_s += time.perf_counter() - computed_s + bound_s - start_s

    def close(self) -> None:
        """Release the session."""
        self._binding = self._session = None


def library_version() -> str:
    """Version of the installed onnxruntime; MissingDependencyError where there is none."""
    ort = _import_onnxruntime()
    if PROVIDER not in ort.get_available_providers():
        raise EngineUnavailableError(f"{NAME} {ort.__version__} was built without {PROVIDER}")
    return str(ort.__version__)


def obstacle(engine: EngineEntry) -> None:
    """Nothing: onnxruntime finds a way on every processor."""


def _session(bundle: Bundle, engine: EngineEntry, n_threads: int, settings: dict[str, str]) -> Any:
    ort = _import_onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = SILENT
    # all-MiniLM-L6-v2, fused, 2,000 random shapes of up to 512 tokens: from 101 MB, memory levels off at 125 MB after
    # 100 of them; with patterns, kept for each shape, at 136 MB; without the arena at 120 to 130 MB, and no faster.
    options.enable_mem_pattern = False
    for name, value in settings.items():
        options.add_session_config_entry(name, value)
    # No batch of POLICY has padding.
    change = functools.partial(unmasked, n_heads=bundle.manifest.model.n_heads)
    more = {"providers": [PROVIDER], "disabled_optimizers": SLOWER_FUSIONS}
    return open_session(bundle, engine, options, change=change, **more)


def _import_onnxruntime() -> Any:
    return import_onnxruntime(package=NAME, needed_for="running an engine on the CPU", extra="cpu")
