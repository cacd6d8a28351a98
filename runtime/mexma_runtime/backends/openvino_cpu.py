"""OpenVINO on the CPU: groups of equal length, no padding, float32 wherever the graph does not say int8."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mexma_runtime.backends.base import BackendInfo, BackendOptions, BatchPolicy
from mexma_runtime.backends.padding import padded_inputs
from mexma_runtime.backends.requirements import n_threads_for, require_names, require_version, saturates
from mexma_runtime.bundle import Bundle
from mexma_runtime.errors import EngineUnavailableError, MexmaError, MissingDependencyError, UsageError
from mexma_runtime.hardware import describe_processor, detect_hardware, onednn_instruction_sets, sums_int8_exactly
from mexma_runtime.manifest import EngineEntry, Manifest
from mexma_runtime.types import Ragged, Vectors
from mexma_runtime.vectors import rows_to_fill

NAME = "openvino"
DEVICE = "CPU"
POLICY = BatchPolicy(max_batch_tokens=512, equal_length=True)
GROUP_STEP = 16
"""Groups of channels that share a dynamic scale are multiples of this."""
N_CACHED = 256
"""Kernels that OpenVINO keeps for shapes that come back: about a hundred shapes' worth.

An int8 model of full size, 170 shapes: memory grows by 195 MB and levels off; with 64 kept, by 65 MB; where OpenVINO
and oneDNN keep what they like, by 1,630 MB, and on. all-MiniLM-L6-v2 in fp32, lengths 4 to 64 in turn, one sentence
each: 8.9 ms of processor time with 128 kept or more, 11.8 with 32, 22 with none.
"""
ONEDNN_CACHE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


def open_engine(bundle: Bundle, engine: EngineEntry, options: BackendOptions) -> OpenVinoCpu:
    """Compile `engine`."""
    version = library_version()
    require_version(engine, NAME, version, extra="openvino")
    if options.spinning:
        raise UsageError(
            "spinning=True: OpenVINO's idle threads always sleep: leave it out, or ask for backend='onnxruntime'"
        )
    if reason := obstacle(engine):
        raise EngineUnavailableError(reason)
    settings = _settings(
        n_threads=n_threads_for(options, detect_hardware()), group_size=_group_size(engine, bundle.manifest)
    )
    path = bundle.path(engine.file)
    with _one_cache():
        try:
            compiled = _import_openvino().Core().compile_model(str(path), DEVICE, settings)
        except Exception as error:
            raise EngineUnavailableError(f"{path}: {NAME} {version} cannot open this graph: {error}") from error
        inputs, outputs = ([value.any_name for value in found] for found in (compiled.inputs, compiled.outputs))
        require_names(path, engine, inputs, outputs)
        info = BackendInfo(
            backend=NAME,
            version=version,
            device="cpu",
            providers=tuple(compiled.get_property("EXECUTION_DEVICES")),
            n_threads=compiled.get_property("INFERENCE_NUM_THREADS"),
            spinning=False,
            processor=describe_processor(uses_onednn=True),
            policy=POLICY,
        )
        backend = OpenVinoCpu(compiled, engine=engine, manifest=bundle.manifest, info=info)
        backend.run(Ragged.from_sequences([[0]]), np.empty((1, bundle.manifest.dim), dtype=np.float32))
    backend.copy_s = backend.compute_s = 0.0
    return backend


class OpenVinoCpu:
    """A compiled model. `run` is called by one thread at a time."""

    def __init__(self, compiled: Any, *, engine: EngineEntry, manifest: Manifest, info: BackendInfo) -> None:
        self._request = compiled.create_infer_request()
        self._engine, self._manifest, self._info = engine, manifest, info
        self.copy_s = self.compute_s = 0.0

    @property
    def info(self) -> BackendInfo:
        """What was chosen."""
        return self._info

    def run(self, batch: Ragged, out: Vectors) -> None:
        """Embed `batch` into `out`: float32 `(n, dim)`, C-contiguous."""
        start_s = time.perf_counter()
        out = rows_to_fill(out, len(batch), self._manifest.dim)
        arrays = padded_inputs(batch, self._manifest.text)
        inputs = {name: arrays[name] for name in self._engine.inputs}
        ready_s = time.perf_counter()
        try:
            # A request keeps what it shares until the next call: a copy of ids and rows costs less than the caller's
            # arrays living on.
            rows = self._request.infer(inputs, share_inputs=False, share_outputs=True)[0]
            if rows.shape != out.shape:
                raise ValueError(f"expected vectors {out.shape}, got {rows.shape}")
        except Exception as error:
            shape = "x".join(map(str, arrays["input_ids"].shape))
            raise MexmaError(f"{self._engine.file}: {NAME} failed on a batch of {shape} tokens: {error}") from error
        computed_s = time.perf_counter()
        out[:] = rows
        self.compute_s += computed_s - ready_s
        self.copy_s += time.perf_counter() - computed_s + ready_s - start_s

    def close(self) -> None:
        """Release the model."""
        self._request = None


def library_version() -> str:
    """Version of the installed openvino; MissingDependencyError where there is none."""
    release: str = _import_openvino().__version__.partition("-")[0]
    return release


def obstacle(engine: EngineEntry) -> str | None:
    """Why this processor must not run `engine`; None: it may."""
    sets = onednn_instruction_sets(detect_hardware().instruction_sets)
    is_dynamic = engine.quantization is not None and engine.quantization.has_dynamic
    if not saturates(engine, sets) and (not is_dynamic or sums_int8_exactly(sets)):
        return None
    what = (
        "computes no dynamic int8 products" if is_dynamic else "saturates sums of int8 products, giving wrong vectors"
    )
    return (
        f"engine {engine.name}: {NAME} {what} on {describe_processor(uses_onednn=True)}, which lacks avx512_vnni and "
        "avx_vnni: ask for backend='onnxruntime' or precision='fp32', or export a static recipe with weight_bits 7"
    )


def _group_size(engine: EngineEntry, manifest: Manifest) -> int:
    """Channels that share a dynamic scale, 0: no dynamic scales. What OpenVINO would compute in float is refused."""
    if engine.quantization is None or not engine.quantization.has_dynamic:
        return 0
    size, narrowest = engine.quantization.group_size, manifest.model.hidden_size
    if size is None or size < 1 or size % GROUP_STEP or size > narrowest:
        raise EngineUnavailableError(
            f"engine {engine.name}: {NAME} finds scales for groups of a multiple of {GROUP_STEP} channels, at most the "
            f"{narrowest} of the narrowest product, and would compute the engine's groups of {size or 'a whole token'} "
            "in float: ask for backend='onnxruntime', or export a recipe of group_size 128"
        )
    return size


def _settings(*, n_threads: int, group_size: int) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": n_threads,
        "INFERENCE_PRECISION_HINT": "f32",  # else float products are bf16 where the processor has it
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": group_size,
        "ENABLE_CPU_PINNING": False,  # else several processes pin their threads to the same cores
        "CPU_RUNTIME_CACHE_CAPACITY": N_CACHED,
    }


@contextmanager
def _one_cache() -> Iterator[None]:
    """Keep oneDNN, inside of OpenVINO, from keeping a thousand kernels of its own, which slows nothing.

    It reads the variable once in a process, before its first kernel, and OpenVINO has no setting for it. Others that
    bring their own oneDNN, such as PyTorch, should not find it.
    """
    if ONEDNN_CACHE in os.environ:
        yield
        return
    os.environ[ONEDNN_CACHE] = "0"
    try:
        yield
    finally:
        del os.environ[ONEDNN_CACHE]


def _import_openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        if error.name == NAME and isinstance(error, ModuleNotFoundError):
            raise MissingDependencyError(
                NAME, needed_for="running an engine with it", extra="openvino", instead="ask for backend='onnxruntime'"
            ) from error
        raise EngineUnavailableError(f"{NAME} is installed but cannot be imported: {error}") from error
    return openvino
