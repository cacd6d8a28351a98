"""OpenVINO on the CPU: no padding, float32 wherever the graph does not say int8, large batches in streams."""

from __future__ import annotations

import functools
import os
import queue
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mexma_runtime.backends.base import BackendInfo, OnRows
from mexma_runtime.backends.cpu.host import HostBackend
from mexma_runtime.backends.options import CpuOptions
from mexma_runtime.backends.padding import padded_inputs
from mexma_runtime.backends.requirements import require_names, require_version, saturates, unless_set
from mexma_runtime.batching import BatchPolicy, Grouping, make_batches
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.linked_files import MappedGraph, is_linked, map_graph
from mexma_runtime.bundle.manifest import GROUP_STEP, EngineEntry, Manifest
from mexma_runtime.errors import EngineUnavailableError, MexmaError, MissingDependencyError, UsageError
from mexma_runtime.hardware import (
    default_threads,
    describe_processor,
    detect_hardware,
    onednn_instruction_sets,
    sums_int8_exactly,
)
from mexma_runtime.process import NATIVE, keep_in_forks, run_aside
from mexma_runtime.types import Precision, Ragged, Vectors
from mexma_runtime.vectors import rows_to_fill

NAME = "openvino"
DEVICE = "CPU"
MAX_BATCH_TOKENS = 512
MAX_STREAMS = 8
"""Large batches are parted among so many groups of threads at most; each has kernels and values of its own."""
MIN_STREAMED_TOKENS = 256
"""Fewer are computed by all threads together, as soon as possible and without a second model in memory."""
STREAM_TOKENS = 256
"""What one stream takes at a time, but for one sentence that is longer."""
N_CACHED = 256
"""Kernels that OpenVINO keeps for shapes that come back: about a hundred shapes' worth.

An int8 model of full size, 170 shapes: memory grows by 195 MB and levels off; with 64 kept, by 65 MB; where OpenVINO
and oneDNN keep what they like, by 1,630 MB, and on. all-MiniLM-L6-v2 in fp32, lengths 4 to 64 in turn, one sentence
each: 8.9 ms of processor time with 128 kept or more, 11.8 with 32, 22 with none.
"""
NOTHING = """<net name="nothing" version="11">
<layers>
<layer id="0" name="in" type="Parameter" version="opset1"><data shape="1" element_type="f32"/>
<output><port id="0" precision="FP32"><dim>1</dim></port></output></layer>
<layer id="1" name="out" type="Result" version="opset1">
<input><port id="0" precision="FP32"><dim>1</dim></port></input></layer>
</layers>
<edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/></edges>
</net>"""
ONEDNN_CACHE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
"""Else oneDNN, inside of OpenVINO, keeps a thousand kernels of its own; without them nothing is slower. It reads the
variable once in a process, before its first kernel, and OpenVINO has no setting for it."""
SETTLING_S = 0.02
"""After a batch, TBB's threads look for more for a moment, which a fork must not copy. A process that embeds all the
time in a model of one layer was forked 300 times at once behind a batch, and ten children waited for ever; of 200 that
were forked 2 ms later, none."""
TELEMETRY = "TF_BUILD"
"""Azure's mark of a CI job, in which OpenVINO's package sends no telemetry when it is imported. Else a thread of it
forks the process, and whoever forks meanwhile finds a child of another in `multiprocessing`, and says so when it ends.
It has no variable of its own.
"""

Rows: TypeAlias = NDArray[np.int64]
Feed: TypeAlias = dict[str, NDArray[np.int32]]


def open_engine(bundle: Bundle, engine: EngineEntry, options: CpuOptions) -> OpenVinoCpu:
    """Compile `engine`."""
    version = library_version()
    require_version(engine, NAME, version, extra="openvino")
    if options.spinning:
        raise UsageError(
            "spinning=True: OpenVINO's idle threads always sleep: leave it out, or ask for backend='onnxruntime'"
        )
    if reason := obstacle(engine):
        raise EngineUnavailableError(reason)
    n_threads = options.n_threads or default_threads(detect_hardware())
    settings = _settings(n_threads=n_threads, group_size=_group_size(engine, bundle.manifest))
    # Its bindings set themselves up in the first run, where two threads would wait for each other for ever.
    with NATIVE.setting_up, unless_set(ONEDNN_CACHE, "0"):
        backend = OpenVinoCpu(bundle, engine, settings)
        backend.run(Ragged.from_sequences([[0]]), np.empty((1, bundle.manifest.dim), dtype=np.float32))
    backend.copy_s = backend.compute_s = 0.0
    _prepare_forks()
    return backend


class OpenVinoCpu(HostBackend):
    """A model compiled for all threads together; of int8, another one in streams when the first large batch comes.

    `run` is called by one thread at a time.
    """

    def __init__(self, bundle: Bundle, engine: EngineEntry, settings: Mapping[str, Any]) -> None:
        path, self._engine, self._manifest = bundle.path(engine.file), engine, bundle.manifest
        self._settings = settings
        # Streams are compiled of it, for the file may have moved by then. Its weights are pages of their file.
        self._mapped = map_graph(bundle, engine) if is_linked(bundle, engine) else None
        self._model = _read(path, self._mapped)
        compiled = _compile(self._model, path, settings)
        inputs, outputs = ([value.any_name for value in found] for found in (compiled.inputs, compiled.outputs))
        require_names(path, engine, inputs, outputs)
        n_threads = compiled.get_property("INFERENCE_NUM_THREADS")
        # In fp32 a second model would cost gigabytes.
        self._n_streams = min(n_threads, MAX_STREAMS) if engine.precision is Precision.INT8 else 1
        self._path, self._request = path, compiled.create_infer_request()
        self._streams: queue.SimpleQueue[Any] | None = None
        self.info = BackendInfo(
            backend=NAME,
            version=library_version(),
            device="cpu",
            providers=tuple(compiled.get_property("EXECUTION_DEVICES")),
            n_threads=n_threads,
            spinning=False,
            processor=describe_processor(uses_onednn=True),
            policy=BatchPolicy(
                max_batch_tokens=MAX_BATCH_TOKENS * self._n_streams,
                grouping=Grouping.EQUAL if self._n_streams == 1 else Grouping.MIXED,
            ),
        )
        self.copy_s = self.compute_s = 0.0

    def run(self, batch: Ragged, out: Vectors, on_rows: OnRows | None = None) -> None:
        """Embed `batch` into `out`: float32 `(n, dim)`, C-contiguous."""
        start_s = time.perf_counter()
        out = rows_to_fill(out, len(batch), self._manifest.dim)
        n_tokens, lengths = batch.ids.size, batch.lengths
        # Each stream gets an even share; a sentence longer than that would keep one busy while the others wait.
        share = -(-n_tokens // self._n_streams)
        in_streams = self._n_streams > 1 and n_tokens >= MIN_STREAMED_TOKENS and lengths.max() <= share
        most_tokens = min(STREAM_TOKENS, share) if in_streams else MAX_BATCH_TOKENS
        parts = make_batches(lengths, BatchPolicy(max_batch_tokens=most_tokens, grouping=Grouping.EQUAL))
        feeds = [self._feed(batch.take(rows)) for rows in parts]
        ready_s = time.perf_counter()
        if in_streams:
            self._run_in_streams(parts, feeds, out, on_rows)
        else:
            for rows, feed in zip(parts, feeds, strict=True):
                self._infer(self._request, rows, feed, out, on_rows)
        self.compute_s += time.perf_counter() - ready_s
        self.copy_s += ready_s - start_s

    def close(self) -> None:
        """Release the model."""
        self._model = self._request = self._streams = None

    def _run_in_streams(self, parts: list[Rows], feeds: list[Feed], out: Vectors, on_rows: OnRows | None) -> None:
        """The largest parts first, each by the next stream that is free."""
        if self._streams is None:
            compiled = _compile(self._model, self._path, {**self._settings, "NUM_STREAMS": self._n_streams})
            self._streams = queue.SimpleQueue()
            for _ in range(self._n_streams):
                self._streams.put(compiled.create_infer_request())
        streams = self._streams
        left = iter(sorted(zip(parts, feeds, strict=True), key=lambda part: -part[1]["input_ids"].size))

        def compute() -> None:
            request = streams.get()
            try:
                for rows, feed in left:
                    self._infer(request, rows, feed, out, on_rows)
            finally:
                streams.put(request)

        others = [run_aside(compute) for _ in range(min(self._n_streams, len(parts)) - 1)]
        try:
            compute()
        finally:
            for other in others:
                other.wait()
        for other in others:
            other.result()

    def _infer(self, request: Any, rows: Rows, feed: Feed, out: Vectors, on_rows: OnRows | None) -> None:
        try:
            # A request keeps what it shares until the next call: a copy of ids costs less than the caller's arrays
            # living on.
            vectors = request.infer(feed, share_inputs=False, share_outputs=True)[0]
            if vectors.shape != (rows.size, out.shape[1]):
                raise ValueError(f"expected vectors {(rows.size, out.shape[1])}, got {vectors.shape}")
        except Exception as error:
            shape = "x".join(map(str, feed["input_ids"].shape))
            raise MexmaError(f"{self._engine.file}: {NAME} failed on a batch of {shape} tokens: {error}") from error
        out[rows] = vectors
        if on_rows:
            on_rows(rows)

    def _feed(self, batch: Ragged) -> Feed:
        arrays = padded_inputs(batch, self._manifest.text)
        return {name: arrays[name] for name in self._engine.inputs}


def library_version() -> str:
    """Version of the installed openvino; MissingDependencyError where there is none."""
    release: str = _import_openvino().__version__.partition("-")[0]
    return release


def obstacle(engine: EngineEntry) -> str | None:
    """Why this processor must not run `engine`; None: it may."""
    sets = onednn_instruction_sets(detect_hardware().instruction_sets)
    has_scale_groups = engine.quantization is not None and engine.quantization.has_scale_groups
    if not saturates(engine, sets) and (not has_scale_groups or sums_int8_exactly(sets)):
        return None
    what = (
        "computes no int8 products with a scale a group"
        if has_scale_groups
        else "saturates sums of int8 products, giving wrong vectors"
    )
    return (
        f"engine {engine.name}: {NAME} {what} on {describe_processor(uses_onednn=True)}, which lacks avx512_vnni and "
        "avx_vnni: ask for backend='onnxruntime' or precision='fp32', or export a recipe with weight_bits 7 and no "
        "product of mode group"
    )


def _group_size(engine: EngineEntry, manifest: Manifest) -> int:
    """Channels that share a scale, 0: no product has groups. What OpenVINO would compute in float is refused."""
    if engine.quantization is None or not engine.quantization.has_scale_groups:
        return 0
    size, narrowest = engine.quantization.group_size, manifest.model.hidden_size
    if size is None or size < 1 or size % GROUP_STEP or size > narrowest:
        raise EngineUnavailableError(
            f"engine {engine.name}: {NAME} finds scales for groups of a multiple of {GROUP_STEP} channels, at most the "
            f"{narrowest} of the narrowest product, and would compute the engine's groups of {size or 'a whole token'} "
            "in float: export a recipe of group_size 64"
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


def _read(path: Path, mapped: MappedGraph | None) -> Any:
    with _refusing(path):
        core = _import_openvino().Core()
        return _with_weights(core, mapped) if mapped else core.read_model(str(path.resolve()))


def _with_weights(core: Any, mapped: MappedGraph) -> Any:
    """The model of a graph whose weights OpenVINO does not find by itself."""
    from openvino import op

    model = core.read_model(mapped.with_weights_as_inputs())
    values = {tensor.name: tensor.values for tensor in mapped.weights}
    for parameter in model.get_parameters():
        if (name := parameter.friendly_name) in values:
            constant = op.Constant(values[name], shared_memory=True)
            parameter.output(0).replace(constant.output(0))
            model.remove_parameter(parameter)
    return model


def _compile(model: Any, path: Path, settings: Mapping[str, Any]) -> Any:
    with _refusing(path):
        return _import_openvino().Core().compile_model(model, DEVICE, dict(settings))


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise EngineUnavailableError(f"{path}: {NAME} {library_version()} cannot open this graph: {error}") from error


@functools.cache
def _prepare_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_hold_pool)
    NATIVE.settling_s = SETTLING_S


@functools.cache
def _hold_pool() -> Any:
    """Keep OpenVINO's pool of threads alive, by a model that computes nothing, where all engines were closed.

    A forked child would destroy its copy of the pool when it ends, and abort for the lack of the threads.
    """
    core = _import_openvino().Core()
    held = core.compile_model(core.read_model(NOTHING.encode(), b""), DEVICE)
    keep_in_forks(held)
    return held


def _import_openvino() -> Any:
    try:
        with unless_set(TELEMETRY, "1"):
            import openvino
    except (ImportError, RuntimeError) as error:  # once the main thread has ended, the latter
        if isinstance(error, ModuleNotFoundError) and error.name == NAME:
            raise MissingDependencyError(
                NAME, needed_for="running an engine with it", extra="openvino", instead="ask for backend='onnxruntime'"
            ) from error
        raise EngineUnavailableError(f"{NAME} is installed but cannot be imported: {error}") from error
    return openvino
