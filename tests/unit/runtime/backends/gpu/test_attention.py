"""Two attention kernels behind one engine, as two real sessions of onnxruntime's CPU provider that can be told apart.

The graph of the second gives vectors that are longer by a ten thousandth, which is less than loading looks for.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from mexma_runtime import backends
from mexma_runtime.backends.gpu import measuring, shared_weights
from mexma_runtime.backends.gpu import onnxruntime as onnxruntime_cuda
from mexma_runtime.backends.gpu.assembly import assemble
from mexma_runtime.backends.gpu.attention import open_with, why_no_flash
from mexma_runtime.backends.gpu.backend import DeviceBackend, Worker
from mexma_runtime.backends.gpu.cuda_checks import Gpu
from mexma_runtime.backends.gpu.measuring import MEAN_TOKENS, measure_kernels, spread
from mexma_runtime.backends.gpu.shared_weights import SharedWeights
from mexma_runtime.backends.onnxruntime_library import OrtSession
from mexma_runtime.backends.options import Attention, GpuOptions, Graphs
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.linked_files import map_graph
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.bundle.tuning import Tuning, choose_crossover, read_tuning
from mexma_runtime.cli.tables import show_tuning
from mexma_runtime.errors import DeviceMemoryError, EngineUnavailableError, UsageError
from mexma_runtime.types import Dialect, Precision, Ragged, Vectors

EFFICIENT, FLASH, AUTO = Attention
TUNING = Tuning(graph_up_to_tokens=192, max_batch_tokens=1024, flash_above_mean_tokens=64)
LONGER = 1.0001
MB = 10**6
WEIGHTS_BYTES = 4 * (64 * (8192 + 514) + 3 * 64 * (64 + 128 + 128))
"""Of the stand-in `tiny`, in fp32: embeddings, and of each layer the products but for queries, keys and values."""


class Session:
    """A session that notes its runs, and that finds no memory for more than `most_tokens`."""

    captures = False

    def __init__(self, kernel: Attention, inner: OrtSession, opener: Opener) -> None:
        self.kernel, self._inner, self._house = kernel, inner, opener
        self.library, self.providers = self._inner.library, self._inner.providers
        self._device, self._has_run = opener.device, False

    def holds(self, n_sentences: int, longest: int) -> bool:
        return True

    def binding(self, *, is_fixed: bool) -> Any:
        return Binding(self._inner.binding(is_fixed=is_fixed), self)

    def run(self, binding: Any) -> None:
        opener = self._house
        opener.runs.append((self.kernel, *binding.shape))
        opener.threads.add(threading.current_thread().name)
        if binding.shape[0] > opener.most_tokens.get(self.kernel, 1 << 30):
            raise RuntimeError("BFCArena: Failed to allocate memory for requested buffer of size 123")
        if not self._has_run:
            self._device.free -= 50 * MB  # for activations
        self._has_run = True
        self._device.queue(partial(self._inner.run, binding.inner))


class Binding:
    """An IO binding that knows its tokens and sentences, and holds its session, as onnxruntime's does."""

    def __init__(self, inner: Any, session: Session) -> None:
        self.inner, self.session, self.shape = inner, session, (0, 0)

    def bind_input(self, name: str, dtype: Any, shape: Any, pointer: int) -> None:
        if name == "input_ids":
            self.shape = (shape[0], self.shape[1])
        self.inner.bind_input(name, dtype, shape, pointer)

    def bind_output(self, name: str, dtype: Any, shape: Any, pointer: int) -> None:
        self.shape = (self.shape[0], shape[0])
        self.inner.bind_output(name, dtype, shape, pointer)


class Opener:
    """Opens backends over one packed engine, and keeps what their sessions did."""

    def __init__(self, bundle: Bundle, paths: dict[Attention, Path], make_device: Callable[[], Any]) -> None:
        self.bundle, self.paths, self._make_device = bundle, paths, make_device
        self.entry = next(e for e in bundle.manifest.engines if e.dialect is Dialect.PACKED)
        self.most_tokens: dict[Attention, int] = {}
        self.no_room_for_weights: set[Attention] = set()
        self.runs: list[tuple[Attention, int, int]] = []
        """Kernel, tokens and sentences of each run of a session; replays of graphs are none."""
        self.opened: list[tuple[Attention, int | None]] = []
        self.sessions: list[weakref.ref[Session]] = []
        self.weights: list[weakref.ref[SharedWeights]] = []
        self.threads: set[str] = set()
        self.device: Any = None
        self._backends: list[DeviceBackend] = []

    def load(
        self,
        wanted: Attention,
        *,
        graphs: Graphs = Graphs.NEVER,
        tuning: Tuning = TUNING,
        memory_limit: int | None = None,
        no_flash: str | None = None,
    ) -> DeviceBackend:
        worker = Worker("cpu:0")
        self.device = device = self._make_device()
        device.free = 10_000 * MB
        device.free_bytes = lambda: device.free
        self.runs.clear()
        self.opened.clear()
        self.sessions.clear()
        self.weights.clear()
        assembled = partial(self._assemble, device=device, worker=worker, graphs=graphs, tuning=tuning)
        backend = worker.run(
            lambda: open_with(
                wanted,
                self._open,
                self._share,
                assembled,
                device,
                no_flash=no_flash,
                memory_limit=memory_limit,
                flash_above_mean_tokens=tuning.flash_above_mean_tokens,
                max_tokens=self.bundle.manifest.text.max_tokens,
            )
        )
        self._backends.append(backend)
        return backend

    def close(self) -> None:
        for backend in self._backends:
            backend.close()

    def _share(self) -> SharedWeights:
        weights = SharedWeights(map_graph(self.bundle, self.entry).weights_read_in_runs(), self.device)
        self.device.free -= weights.n_bytes
        self.weights.append(weakref.ref(weights))
        return weights

    def _open(self, kernel: Attention, memory_limit: int | None, weights: SharedWeights | None) -> Session:
        self.opened.append((kernel, memory_limit))
        if kernel in self.no_room_for_weights:
            raise DeviceMemoryError("no room for the weights")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        for name, value in weights.values.items() if weights else ():
            options.add_initializer(name, value)
        inner = ort.InferenceSession(str(self.paths[kernel]), options, providers=["CPUExecutionProvider"])
        session = Session(kernel, OrtSession(inner, "cpu", 0, keeps=weights), self)
        self.sessions.append(weakref.ref(session))
        self.device.free -= 300 * MB
        return session

    def _assemble(self, session: Any, attention: str, **more: Any) -> DeviceBackend:
        device, worker = more.pop("device"), more.pop("worker")
        return assemble(
            self.bundle,
            self.entry,
            session,
            device,
            worker,
            version=ort.__version__,
            processor="the host",
            spinning=True,
            make_value=lambda shape: None,
            attention=attention,
            **more,
        )


def lengthened(path: Path, factor: float, to: Path) -> Path:
    """The graph in `path` with vectors `factor` times as long."""
    model = onnx.load(path, load_external_data=False)
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["before" if name == output.name else name for name in node.output]
    model.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    model.graph.node.append(helper.make_node("Mul", ["before", "factor"], [output.name]))
    onnx.save(model, to)
    return to


@pytest.fixture(scope="module")
def paths(bundle: Bundle, packed_on_cpu: Callable[[Path], Path]) -> dict[Attention, Path]:
    entry = next(entry for entry in bundle.manifest.engines if entry.dialect is Dialect.PACKED)
    efficient = packed_on_cpu(bundle.path(entry.file))
    return {EFFICIENT: efficient, FLASH: lengthened(efficient, LONGER, efficient.with_suffix(".flash.onnx"))}


@pytest.fixture
def opener(bundle: Bundle, paths: dict[Attention, Path], make_host_device: Callable[[], Any]) -> Iterator[Opener]:
    made = Opener(bundle, dict(paths), make_host_device)
    yield made
    made.close()


def batch_of(*lengths: int) -> Ragged:
    ids = np.random.default_rng(sum(lengths)).integers(5, 8000, sum(lengths), dtype=np.int32)
    return Ragged.from_lengths(ids, lengths)


def embedded(backend: DeviceBackend, batch: Ragged) -> Vectors:
    out = np.full((len(batch), 64), np.nan, np.float32)
    backend.start(batch, out, normalize=False)()
    return out


MEANS = [
    (EFFICIENT, (10,) * 6),
    (EFFICIENT, (64,)),
    (EFFICIENT, (1, 127)),
    (FLASH, (65,)),
    (FLASH, (10, 120)),
    (FLASH, (300, 100, 2)),
]


@pytest.mark.parametrize(("kernel", "lengths"), MEANS)
def test_a_batch_runs_in_the_kernel_for_its_mean_length(
    kernel: Attention, lengths: tuple[int, ...], opener: Opener
) -> None:
    batch = batch_of(*lengths)
    vectors = {alone: embedded(opener.load(alone), batch) for alone in (EFFICIENT, FLASH)}
    assert not np.array_equal(vectors[EFFICIENT], vectors[FLASH])
    backend = opener.load(AUTO)
    opener.runs.clear()
    for _ in range(3):  # in either staging buffer
        np.testing.assert_array_equal(embedded(backend, batch), vectors[kernel])
    assert opener.runs == [(kernel, sum(lengths), len(lengths))] * 3


def test_batches_of_either_kind_follow_each_other(opener: Opener) -> None:
    """Under way at once, in the same staging buffers: each binding is of its own session."""
    backend = opener.load(AUTO)
    batches = [batch_of(*lengths) for _, lengths in MEANS] * 2
    expected = [embedded(backend, batch) for batch in batches]
    found = [np.empty_like(vectors) for vectors in expected]
    finishes = [backend.start(batch, out, normalize=False) for batch, out in zip(batches, found, strict=True)]
    for finish in finishes:
        finish()
    for out, vectors in zip(found, expected, strict=True):
        np.testing.assert_array_equal(out, vectors)


@pytest.mark.parametrize("graphs", [Graphs.AT_LOAD, Graphs.FIRST_USE])
def test_each_bucket_has_captured_one_kernel(graphs: Graphs, opener: Opener) -> None:
    alone, backend = opener.load(EFFICIENT, graphs=graphs), opener.load(AUTO, graphs=graphs)
    lengths_of = {
        EFFICIENT: [(3,), (40,), (64,), (20,) * 5, (60, 60, 60), (90, 20), (52,) * 5, (64,) * 5, (56,) * 7, (64,) * 7],
        FLASH: [(65,), (96,), (97,), (128,), (150,), (192,), (100, 90), (65,) * 5, (65,) * 7],
    }
    for kernel, all_lengths in lengths_of.items():
        for lengths in all_lengths:
            batch = batch_of(*lengths)
            expected = embedded(alone, batch) * (LONGER if kernel is FLASH else 1)
            for _ in range(2):  # captured or replayed, and replayed
                # In a bucket for fewer sentences rounding may differ, but by far less than the kernels do.
                found = embedded(backend, batch)
                assert np.linalg.norm(found - expected) < (LONGER - 1) / 10 * np.linalg.norm(expected)
    before = list(opener.runs)
    for _, lengths in MEANS[:5]:
        embedded(backend, batch_of(*lengths))
    assert opener.runs == before


def test_both_kernels_are_checked_and_given_the_largest_batch_at_loading(opener: Opener) -> None:
    opener.load(AUTO)
    probes = [(7, 1), (3, 1), (12, 1), (22, 3)]
    assert [run[1:] for run in opener.runs if run[0] is EFFICIENT] == [(1024, 513), *probes]
    assert [run[1:] for run in opener.runs if run[0] is FLASH] == [(1024, 513), *probes, (22, 3)]


def test_a_kernel_that_computes_something_else_is_refused(opener: Opener) -> None:
    opener.paths[FLASH] = lengthened(opener.paths[EFFICIENT], 1.01, opener.paths[EFFICIENT].with_suffix(".wrong.onnx"))
    with pytest.raises(EngineUnavailableError, match="computes wrong vectors"):
        opener.load(AUTO)


def test_what_both_take_is_told(opener: Opener) -> None:
    assert opener.load(AUTO).info.attention == (
        "efficient for batches of up to 64 tokens a sentence on average, flash above; flash took 350 MB more, beside "
        "2 MB of weights for both"
    )
    assert [opener.load(kernel).info.attention for kernel in (EFFICIENT, FLASH)] == ["efficient", "flash"]


def test_the_cuda_backend_opens_both(
    opener: Opener, make_host_device: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its own code but for the provider, the device and the kernels, which have stand-ins here."""
    opened: list[tuple[Attention | None, int | None]] = []

    def session(bundle: Bundle, entry: EngineEntry, device: Any, options: GpuOptions, weights: SharedWeights) -> Any:
        opened.append((options.attention, options.memory_limit))
        assert options.attention
        settings = ort.SessionOptions()
        for name, value in weights.values.items():
            settings.add_initializer(name, value)
        return ort.InferenceSession(str(opener.paths[options.attention]), settings, providers=["CPUExecutionProvider"])

    def device(index: int, *, spinning: bool) -> Any:
        made = make_host_device()
        made.queue = lambda work: work()  # as these sessions, which wait for nothing
        return made

    monkeypatch.setattr(onnxruntime_cuda, "_session", session)
    monkeypatch.setattr(onnxruntime_cuda, "CudaDevice", device)
    monkeypatch.setattr(onnxruntime_cuda, "why_no_flash", lambda precision, gpu: None)
    gpu = Gpu(index=0, name="NVIDIA L4", capability=(8, 9), memory_bytes=1 << 34)
    options = GpuOptions(attention=AUTO, graphs=Graphs.NEVER, memory_limit=10 * MB, tuning=TUNING)
    worker = Worker("cuda:0")
    backend = worker.run(onnxruntime_cuda._open, opener.bundle, opener.entry, options, gpu, worker)
    half = (10 * MB - WEIGHTS_BYTES) // 2
    assert opened == [(EFFICIENT, half), (FLASH, half)]
    assert backend.info.attention.startswith("efficient for batches of up to 64 tokens a sentence on average, flash")
    short, long = (np.linalg.norm(embedded(backend, batch_of(length))) for length in (64, 65))
    alone = [np.linalg.norm(embedded(opener.load(EFFICIENT), batch_of(length))) for length in (64, 65)]
    np.testing.assert_allclose([short / alone[0], long / alone[1]], [1, LONGER], atol=(LONGER - 1) / 10)
    backend.close()


def no_room_for_weights(opener: Opener) -> None:
    opener.no_room_for_weights = {FLASH}


def no_room_for_the_largest(opener: Opener) -> None:
    opener.most_tokens = {FLASH: 1000}


@pytest.mark.parametrize("limit", [None, 10 * MB])
@pytest.mark.parametrize("shortage", [no_room_for_weights, no_room_for_the_largest])
def test_where_there_is_no_room_for_both_efficient_runs_alone(
    shortage: Callable[[Opener], None], limit: int | None, opener: Opener
) -> None:
    shortage(opener)
    backend = opener.load(AUTO, memory_limit=limit)
    half = limit and (limit - WEIGHTS_BYTES) // 2
    assert opener.opened == [(EFFICIENT, half), (FLASH, half), (EFFICIENT, limit)]
    assert backend.info.attention.startswith("efficient alone: there is no room for flash beside it (")
    assert backend.info.policy.max_batch_tokens == 1024
    *failed, last = opener.sessions
    assert [session() for session in failed] == [None] * len(failed)
    assert [weights() for weights in opener.weights] == [None]
    assert last() is not None
    opener.runs.clear()
    embedded(backend, batch_of(300))
    assert opener.runs == [(EFFICIENT, 300, 1)]


def test_a_limit_that_the_weights_alone_take_is_for_efficient_alone(opener: Opener) -> None:
    backend = opener.load(AUTO, memory_limit=WEIGHTS_BYTES)
    assert opener.opened == [(EFFICIENT, WEIGHTS_BYTES)]
    assert f"the weights take {WEIGHTS_BYTES} bytes, and memory_limit is {WEIGHTS_BYTES}" in backend.info.attention


def test_both_sessions_read_the_weights_where_they_are(opener: Opener) -> None:
    """All that a sentence is known by is in these weights: with zeros in their place every sentence is like another."""
    backend = opener.load(AUTO)
    batches = [batch_of(10, 20), batch_of(100, 200)]
    (shared,) = (weights() for weights in opener.weights)
    assert shared is not None
    assert shared.n_bytes == WEIGHTS_BYTES
    assert all(value.device_name() == "cpu" for value in shared.values.values())
    for batch in batches:
        first, second = embedded(backend, batch)
        assert np.abs(first - second).max() > 0.1
    ctypes.memset(shared._memory.pointer, 0, shared.n_bytes)
    for batch in batches:
        first, second = embedded(backend, batch)
        np.testing.assert_allclose(first, second, atol=1e-4)


def test_weights_are_copied_in_parts_and_stay_what_they_are(
    opener: Opener, make_host_device: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_weights, "CHUNK_BYTES", 10_000)
    weights = map_graph(opener.bundle, opener.entry).weights_read_in_runs()
    shared = SharedWeights(weights, make_host_device())
    assert list(shared.values) == [tensor.name for tensor in weights]
    for tensor in weights:
        value = shared.values[tensor.name]
        np.testing.assert_array_equal(value.numpy(), tensor.values)
        assert value.data_ptr() % 16 == 0


def test_onnxruntime_takes_values_on_a_gpu_for_nvidias(capfd: pytest.CaptureFixture[str]) -> None:
    """It uses them where they are if their device is the one that its CUDA provider plans for, which is this one.

    Where it is another, as here, it says both devices; the memory, which is none, is not looked at.
    """
    gpu: Any = SimpleNamespace(kind="cuda", index=1)
    value = shared_weights._value(np.zeros((2, 2), np.float32), 0x1000, gpu)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y"))
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 2
    options.add_initializer("w", value)
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert "[DeviceType:1 MemoryType:0 VendorId:4318 DeviceId:1 Alignment:0]" in capfd.readouterr().err


def test_what_onnxruntime_joins_itself_is_not_shared(opener: Opener) -> None:
    mapped = map_graph(opener.bundle, opener.entry)
    names = {tensor.name for tensor in mapped.weights_read_in_runs()}
    left = {tensor.name.rpartition("attention.")[2] for tensor in mapped.weights if tensor.name not in names}
    assert left == {"query.weight", "key.weight", "value.weight"}
    assert {"embeddings.word", "layer.2.ffn.down.weight"} < names


def test_where_there_is_no_room_for_the_largest_batch_of_either_it_is_smaller_with_efficient_alone(
    opener: Opener,
) -> None:
    opener.most_tokens = {EFFICIENT: 600, FLASH: 600}
    with pytest.raises(DeviceMemoryError, match="no room for a batch of 1024 tokens"):
        opener.load(AUTO)
    opener.most_tokens = {EFFICIENT: 1024, FLASH: 1024}
    backend = opener.load(AUTO, tuning=Tuning(max_batch_tokens=2048))
    assert backend.info.policy.max_batch_tokens == 1024
    assert backend.info.attention.startswith("efficient alone: ")


def test_without_a_flash_kernel_there_is_one_session_and_it_is_told(opener: Opener) -> None:
    backend = opener.load(AUTO, no_flash="fp32 has no flash kernel")
    assert opener.opened == [(EFFICIENT, None)]
    assert backend.info.attention == "efficient alone: fp32 has no flash kernel"
    with pytest.raises(UsageError, match="attention=flash: fp32 has no flash kernel: leave it out, or ask for auto"):
        opener.load(FLASH, no_flash="fp32 has no flash kernel")
    assert opener.load(EFFICIENT, no_flash="fp32 has no flash kernel").info.attention == "efficient"


def test_where_no_sentence_is_long_enough_for_flash_there_is_one_session(opener: Opener) -> None:
    backend = opener.load(AUTO, tuning=dataclasses.replace(TUNING, flash_above_mean_tokens=512))
    assert opener.opened == [(EFFICIENT, None)]
    told = "efficient alone: it is the faster up to 512 tokens a sentence, and none has more"
    assert backend.info.attention == told
    opener.load(AUTO, tuning=dataclasses.replace(TUNING, flash_above_mean_tokens=511))
    assert len(opener.opened) == 2


def test_where_flash_is_always_the_faster_it_has_every_bucket(opener: Opener) -> None:
    always = dataclasses.replace(TUNING, flash_above_mean_tokens=0)
    backend = opener.load(AUTO, graphs=Graphs.AT_LOAD, tuning=always)
    assert backend.info.n_graphs == opener.load(FLASH, graphs=Graphs.AT_LOAD, tuning=always).info.n_graphs
    opener.load(AUTO, graphs=Graphs.AT_LOAD, tuning=always)
    captured = [kernel for kernel, n_tokens, n_sentences in opener.runs if n_tokens == 4 * n_sentences]
    assert set(captured) == {FLASH}


def test_flash_needs_fp16_and_a_gpu_of_ampere_or_later() -> None:
    turing = Gpu(index=0, name="NVIDIA T4", capability=(7, 5), memory_bytes=1 << 34)
    ada = Gpu(index=0, name="NVIDIA L4", capability=(8, 9), memory_bytes=1 << 34)
    assert why_no_flash(Precision.FP16, ada) is None
    assert why_no_flash(Precision.FP32, ada) == "fp32 has no flash kernel"
    assert why_no_flash(Precision.FP16, turing) == "flash needs compute capability 8.0, and NVIDIA T4 has 7.5"


def test_every_run_of_both_is_in_the_devices_own_thread(opener: Opener) -> None:
    backend = opener.load(AUTO, graphs=Graphs.FIRST_USE)
    for _, lengths in MEANS * 2:
        embedded(backend, batch_of(*lengths))
    assert {kernel for kernel, _, _ in opener.runs} == {EFFICIENT, FLASH}
    (name,) = opener.threads
    assert name.startswith("mexma-cpu:0")


def test_closing_releases_both(opener: Opener) -> None:
    backend = opener.load(AUTO, graphs=Graphs.AT_LOAD)
    embedded(backend, batch_of(5))
    embedded(backend, batch_of(500))
    assert [session() is None for session in opener.sessions] == [False, False]
    backend.close()
    assert [session() is None for session in opener.sessions] == [True, True]
    assert [weights() for weights in opener.weights] == [None]


def test_both_kernels_are_measured_in_turns(opener: Opener) -> None:
    backend = opener.load(AUTO)
    opener.runs.clear()
    done: list[tuple[int, int]] = []
    samples = backend._worker.run(
        lambda: measure_kernels(backend._engine, dim=64, n_rounds=2, progress=lambda *counts: done.append(counts))
    )
    assert tuple(sample.mean_tokens for sample in samples) == MEAN_TOKENS
    assert all(len(sample.efficient_ms) == len(sample.flash_ms) == 2 for sample in samples)
    assert all(ms > 0 for sample in samples for ms in sample.efficient_ms + sample.flash_ms)
    assert done[-1] == (len(MEAN_TOKENS), len(MEAN_TOKENS))
    assert [kernel for kernel, _, _ in opener.runs] == [EFFICIENT, FLASH] * 3 * len(MEAN_TOKENS)
    means = [n_tokens / n_sentences for _, n_tokens, n_sentences in opener.runs[::6]]
    np.testing.assert_allclose(means, MEAN_TOKENS, rtol=0.1)
    opener.runs.clear()
    embedded(backend, batch_of(10))
    assert opener.runs == [(EFFICIENT, 10, 1)]
    assert opener.load(EFFICIENT).measure_attention(dim=64) == []


@pytest.mark.parametrize("has_flash", [True, False])
def test_tuning_keeps_where_the_kernels_cross(
    has_flash: bool, opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `mexma doctor --tune`, with this device in the GPU's place."""
    asked: list[Any] = []

    def opened(bundle: Bundle, entry: Any, options: Any, device: str, *, backend: str) -> DeviceBackend:
        asked.append((entry.name, options.attention, options.graphs))
        no_flash = None if has_flash else "fp32 has no flash kernel"
        return opener.load(options.attention, graphs=options.graphs, no_flash=no_flash)

    monkeypatch.setattr(backends, "open_backend", opened)
    monkeypatch.setattr(measuring, "MEAN_TOKENS", (8, 128))
    bundle = dataclasses.replace(opener.bundle, folder=tmp_path)
    progress: list[tuple[str, int, int]] = []
    tuned = backends.tune(bundle, "cuda", progress=lambda *told: progress.append(told))
    assert asked == [(opener.entry.name, AUTO, Graphs.AT_LOAD)]
    tuning = tuned.tuning
    assert read_tuning(tmp_path, "the host", opener.entry) == tuning
    assert [sample.n_tokens for sample in tuning.samples] == [8, 12, 16, 24, 32, 48, 64, 96, 128, 192]
    assert progress[9] == ("graphs", 10, 10)
    assert progress[10:] == [("attention", 1, 2), ("attention", 2, 2)] * has_flash
    assert [sample.mean_tokens for sample in tuning.attention_samples] == [8, 128] * has_flash
    assert tuning.flash_above_mean_tokens == choose_crossover(tuning.attention_samples)
    show_tuning(tuned, as_json=False)
    told = capsys.readouterr().out
    above = tuning.flash_above_mean_tokens
    assert (f"attention='auto' takes flash above {above} tokens a sentence, on average" in told) == has_flash
    alone = "attention kernels were not compared: efficient alone: fp32 has no flash kernel"
    assert (alone in told) != has_flash
    show_tuning(tuned, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert (document["attention"], document["flash_above_mean_tokens"]) == (tuned.attention, above)


@pytest.mark.parametrize(("mean", "shortest", "longest"), [(8, 1, 15), (64, 1, 127), (300, 88, 512), (512, 512, 512)])
def test_measured_lengths_are_spread_about_their_mean(mean: int, shortest: int, longest: int) -> None:
    lengths = spread(mean, 512, n_tokens=16384).lengths
    assert (lengths.min(), lengths.max()) == (shortest, longest)
    assert abs(lengths.mean() - mean) < 0.5
    assert abs(lengths.sum() - 16384) < 16384 / 20
