"""onnxruntime on the CPU: groups of equal length, no padding, rows written straight into the caller's array."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np

from mexma_runtime.backends.base import BackendInfo, BackendOptions, BatchPolicy
from mexma_runtime.backends.padding import INPUT_NAMES, padded_inputs
from mexma_runtime.bundle import Bundle
from mexma_runtime.errors import BundleError, EngineUnavailableError, MexmaError, MissingDependencyError, UsageError
from mexma_runtime.hardware import detect_hardware
from mexma_runtime.manifest import EngineEntry, Manifest
from mexma_runtime.types import Ragged, Vectors
from mexma_runtime.vectors import rows_to_fill

NAME = "onnxruntime"
PROVIDER = "CPUExecutionProvider"
POLICY = BatchPolicy(max_batch_tokens=512, equal_length=True)
"""Larger batches gain nothing on a CPU, and padding only costs."""
SILENT = 4
"""Log severity `fatal`: what goes wrong is raised, nothing is printed."""


def open_engine(bundle: Bundle, engine: EngineEntry, options: BackendOptions) -> OnnxRuntimeCpu:
    """Open a session for `engine`."""
    version = library_version()
    least = engine.requires.get(NAME)
    if least is None:
        raise EngineUnavailableError(f"engine {engine.name} is for {', '.join(engine.requires)}, not for {NAME}")
    if version_key(version) < version_key(least):
        raise EngineUnavailableError(
            f"engine {engine.name} needs {NAME} {least} or later, {version} is installed: "
            f"pip install --upgrade 'mexma-runtime[cpu]'"
        )
    hardware = detect_hardware()
    n_threads = hardware.n_usable_cores if options.n_threads is None else options.n_threads
    if n_threads < 1:
        raise UsageError(f"n_threads: expected 1 or more, got {n_threads}")
    # Threads that wait busily would use up a quota that others could compute with.
    spinning = hardware.cpu_quota is None if options.spinning is None else options.spinning
    path = bundle.path(engine.file)
    try:
        session = _session(str(path), n_threads=n_threads, spinning=spinning)
    except Exception as error:
        raise EngineUnavailableError(f"{path}: {NAME} {version} cannot open this graph: {error}") from error
    names = [value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()]
    if names != (engine.inputs, [engine.output]) or not set(engine.inputs) <= set(INPUT_NAMES):
        raise BundleError(
            path, f"expected inputs {engine.inputs} and output {engine.output}, the graph has {names[0]} and {names[1]}"
        )
    info = BackendInfo(
        backend=NAME,
        version=version,
        device="cpu",
        providers=tuple(session.get_providers()),
        n_threads=n_threads,
        spinning=spinning,
        policy=POLICY,
    )
    return OnnxRuntimeCpu(session, engine=engine, manifest=bundle.manifest, info=info)


class OnnxRuntimeCpu:
    """An open session. `run` is called by one thread at a time."""

    def __init__(self, session: Any, *, engine: EngineEntry, manifest: Manifest, info: BackendInfo) -> None:
        self._session, self._binding = session, session.io_binding()
        self._engine, self._manifest, self._info = engine, manifest, info
        self.copy_s = self.compute_s = 0.0

    @property
    def info(self) -> BackendInfo:
        """What was chosen."""
        return self._info

    def run(self, batch: Ragged, out: Vectors) -> None:
        """Embed `batch` into `out`: float32 `(n, dim)`, C-contiguous. The wrapping costs about 0.03 ms."""
        start_s = time.perf_counter()
        out = rows_to_fill(out, len(batch), self._manifest.dim)
        arrays = padded_inputs(batch, self._manifest.text)
        binding = self._binding
        try:
            for name in self._engine.inputs:
                binding.bind_cpu_input(name, arrays[name])
            binding.bind_output(self._engine.output, "cpu", 0, np.float32, out.shape, out.ctypes.data)
            bound_s = time.perf_counter()
            self._session.run_with_iobinding(binding)
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


def version_key(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare: 1.31.1 and 1.31.1+cpu are (1, 31, 1)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def _session(path: str, *, n_threads: int, spinning: bool) -> Any:
    ort = _import_onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = SILENT
    # all-MiniLM-L6-v2, fused, 2,000 random shapes of up to 512 tokens: from 101 MB, memory levels off at 125 MB after
    # 100 of them; with patterns, kept for each shape, at 136 MB; without the arena at 120 to 130 MB, and no faster.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    return ort.InferenceSession(path, options, providers=[PROVIDER])


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        if error.name == NAME and isinstance(error, ModuleNotFoundError):
            raise MissingDependencyError(NAME, needed_for="running an engine on the CPU", extra="cpu") from error
        raise EngineUnavailableError(f"{NAME} is installed but cannot be imported: {error}") from error
    return onnxruntime
