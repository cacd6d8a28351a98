"""A call over a device, on onnxruntime's CPU provider: its thread, graphs, parting, DLPack, two devices."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma_runtime import Encoder
from mexma_runtime.backends.base import Backend
from mexma_runtime.backends.gpu.assembly import add_buckets, assemble, largest_engine
from mexma_runtime.backends.gpu.backend import DeviceBackend, Worker
from mexma_runtime.backends.gpu.buckets import packed_buckets
from mexma_runtime.backends.gpu.device import Device
from mexma_runtime.backends.gpu.layouts import Shape
from mexma_runtime.backends.gpu.measuring import N_ROUNDS, sentences_of
from mexma_runtime.backends.onnxruntime_library import OrtSession
from mexma_runtime.backends.options import Graphs
from mexma_runtime.backends.several import SeveralBackends
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.bundle.tuning import Tuning
from mexma_runtime.device_vectors import DeviceVectors
from mexma_runtime.errors import DeviceError, DeviceMemoryError, EngineUnavailableError, MexmaError, UsageError
from mexma_runtime.types import Dialect, Ragged, Vectors
from mexma_runtime.vectors import to_tensor

TUNING = Tuning(graph_up_to_tokens=64, max_batch_tokens=2048)
TEXTS = [f"{'The ferry leaves at noon. ' * (1 + n % 7)}{n}" for n in range(300)]


class Session:
    """A session of the CPU provider that may run out of memory, as a GPU does, beyond so many tokens; and counts."""

    captures = False

    def __init__(self, session: Any, *, most_tokens: int = 1 << 30, profiles: tuple[tuple[int, int], ...] = ()) -> None:
        """`profiles`: sentences and tokens of the longest, at most; none: any shape."""
        self._session, self.most_tokens = OrtSession(session, "cpu", 0), most_tokens
        self.library, self.providers = self._session.library, self._session.providers
        self._profiles = profiles
        self.shapes: set[tuple[int, int]] = set()
        """That padded runs had."""
        self.device: Any = None
        """That works off its runs."""
        self.threads: set[str] = set()
        self.fixed_runs = 0

    def holds(self, n_sentences: int, longest: int) -> bool:
        fitting = [(n, length) for n, length in self._profiles if n_sentences <= n and longest <= length]
        return bool(fitting) or not self._profiles

    def binding(self, *, is_fixed: bool) -> Any:
        return Binding(self._session.binding(is_fixed=is_fixed), is_fixed=is_fixed)

    def run(self, binding: Any) -> None:
        self.device.runs.append(None)
        self.threads.add(threading.current_thread().name)
        self.shapes.add(binding.shape)
        self.fixed_runs += binding.is_fixed
        if np.prod(binding.shape) > self.most_tokens:
            raise RuntimeError("BFCArena: Failed to allocate memory for requested buffer of size 123")
        self.device.queue(partial(self._session.run, binding.inner))


class Binding:
    """An IO binding that knows how many tokens it binds."""

    def __init__(self, inner: Any, *, is_fixed: bool) -> None:
        self.inner, self.is_fixed, self.shape = inner, is_fixed, (0,)

    def bind_input(self, name: str, dtype: Any, shape: Any, pointer: int) -> None:
        if name == "input_ids":
            self.shape = shape
        self.inner.bind_input(name, dtype, shape, pointer)

    def bind_output(self, *arguments: Any) -> None:
        self.inner.bind_output(*arguments)


MakeBackend = Callable[..., DeviceBackend]


def entry_of(bundle: Bundle, dialect: Dialect) -> EngineEntry:
    return next(entry for entry in bundle.manifest.engines if entry.dialect is dialect)


@pytest.fixture(scope="module")
def paths(bundle: Bundle, packed_on_cpu: Callable[[Path], Path]) -> dict[Dialect, Path]:
    packed, fused = (bundle.path(entry_of(bundle, dialect).file) for dialect in (Dialect.PACKED, Dialect.FUSED))
    return {Dialect.PACKED: packed_on_cpu(packed), Dialect.FUSED: fused}


def open_session(path: Path, **limits: Any) -> Session:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return Session(ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]), **limits)


@pytest.fixture
def make(bundle: Bundle, paths: dict[Dialect, Path], make_host_device: Callable[[], Device]) -> Iterator[MakeBackend]:
    made: list[DeviceBackend] = []

    def backend(
        dialect: Dialect = Dialect.PACKED,
        *,
        graphs: Graphs = Graphs.AT_LOAD,
        tuning: Tuning = TUNING,
        session: Session | None = None,
    ) -> DeviceBackend:
        worker, device = Worker("cpu:0"), make_host_device()
        session = session or open_session(paths[dialect])
        session.device = device
        made.append(
            worker.run(
                lambda: assemble(
                    bundle,
                    entry_of(bundle, dialect),
                    session,
                    device,
                    worker,
                    graphs=graphs,
                    tuning=tuning,
                    version=ort.__version__,
                    processor="the host",
                    spinning=True,
                    make_value=lambda shape: ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, "cpu", 0),
                )
            )
        )
        return made[-1]

    yield backend
    for one in made:
        one.close()


def encoder_over(bundle: Bundle, backend: Backend, dialect: Dialect = Dialect.PACKED) -> Encoder:
    return Encoder(bundle, entry_of(bundle, dialect), backend, {"max_waiting": 8})


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> Vectors:
    with Encoder.from_bundle(bundle, dialect="fused", backend="onnxruntime", n_threads=1) as encoder:
        return encoder.encode(TEXTS)


@pytest.mark.parametrize("dialect", [Dialect.PACKED, Dialect.FUSED])
@pytest.mark.parametrize("graphs", list(Graphs))
def test_a_call_gives_the_vectors_of_the_cpu(
    dialect: Dialect, graphs: Graphs, make: MakeBackend, bundle: Bundle, expected: Vectors
) -> None:
    backend = make(dialect, graphs=graphs)
    with encoder_over(bundle, backend, dialect) as encoder:
        np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=2e-5)
        np.testing.assert_allclose(list(encoder.encode_iter(iter(TEXTS), window=37)), expected, atol=2e-5)
        np.testing.assert_allclose([encoder.encode(text) for text in TEXTS[:9]], expected[:9], atol=2e-5)
        unit = encoder.encode(TEXTS[:50], normalize_embeddings=True)
        np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-5)
        assert encoder.encode([]).shape == (0, 64)
        assert (encoder.info.n_graphs > 0) == (graphs is not Graphs.NEVER)
        times = encoder.times
        assert times.compute_s > 0
        assert times.copy_s > 0


def test_many_threads_share_a_device(make: MakeBackend, bundle: Bundle, expected: Vectors) -> None:
    found: dict[int, list[Vectors]] = {}
    with encoder_over(bundle, make()) as encoder:

        def work(number: int) -> None:
            alone = [encoder.encode(text) for text in TEXTS[number::5][:20]]
            found[number] = [*alone, *encoder.encode(TEXTS[number::5][20:])]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, vectors in found.items():
        np.testing.assert_allclose(vectors, expected[number::5], atol=2e-5)
    assert len(found) == 5


def test_an_iterator_that_nobody_reads_on_holds_nobody_up(make: MakeBackend, bundle: Bundle, expected: Vectors) -> None:
    with encoder_over(bundle, make()) as encoder:
        vectors = encoder.encode_iter(iter(TEXTS), window=20)
        next(vectors)
        for _ in range(4):
            np.testing.assert_allclose(encoder.encode(TEXTS[:60]), expected[:60], atol=2e-5)
        vectors.close()


@pytest.mark.parametrize("graphs", list(Graphs))
def test_every_run_but_a_replay_is_in_one_thread_of_the_devices_own(
    graphs: Graphs, paths: dict[Dialect, Path], make: MakeBackend, bundle: Bundle
) -> None:
    session = open_session(paths[Dialect.PACKED])
    with encoder_over(bundle, make(session=session, graphs=graphs)) as encoder:
        encoder.encode(TEXTS)
        for _ in range(3):
            encoder.encode("one")
    (name,) = session.threads
    assert name.startswith("mexma-cpu:0")


def test_a_batch_whose_graph_is_there_is_launched_by_the_thread_that_asks(
    make: MakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, threads = make(graphs=Graphs.FIRST_USE), []
    launch = backend._engine.launch

    def noted(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return launch(*arguments, **options)

    monkeypatch.setattr(backend._engine, "launch", noted)
    for n_tokens in (10, 10, 11, 20, 20, 500, 500):
        backend.start(Ragged.from_sequences([[5] * n_tokens]), np.zeros((1, 64), np.float32), normalize=False)()
    assert threads == [False, True, True, False, True, False, False]


def test_nothing_is_queued_while_a_graph_is_captured(
    paths: dict[Dialect, Path], make: MakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(paths[Dialect.PACKED])
    backend = make(graphs=Graphs.FIRST_USE, session=session)
    short, longer = (Ragged.from_sequences([[5] * n_tokens]) for n_tokens in (10, 20))
    expected, found = (np.zeros((1, 64), np.float32) for _ in range(2))

    def embed(out: Vectors) -> None:
        backend.start(short, out, normalize=False)()

    embed(expected)
    is_capturing, may_go_on = threading.Event(), threading.Event()
    run = session.run

    def slow(binding: Any) -> None:
        if session.device._captured is not None:
            is_capturing.set()
            may_go_on.wait()
        run(binding)

    monkeypatch.setattr(session, "run", slow)
    finish = backend.start(longer, np.zeros((1, 64), np.float32), normalize=False)
    is_capturing.wait()
    other = threading.Thread(target=embed, args=(found,))
    other.start()
    other.join(timeout=0.1)
    is_waiting = other.is_alive()
    may_go_on.set()
    other.join()
    finish()
    assert is_waiting
    np.testing.assert_array_equal(found, expected)


def test_each_bucket_has_a_graph_of_its_own_and_large_batches_none(
    paths: dict[Dialect, Path], make: MakeBackend, bundle: Bundle
) -> None:
    session = open_session(paths[Dialect.PACKED])
    backend = make(session=session)
    assert session.device.n_graphs == backend.info.n_graphs == 7
    # Each was run, captured, and replayed with every sentence of the probe in front.
    first = session.device.runs.index(1) - 2
    assert session.device.runs[first:] == [run for graph in range(1, 8) for run in (None, None, graph, graph, graph)]
    session.device.runs.clear()
    with encoder_over(bundle, backend) as encoder:
        lengths = (3, 8, 9, 12, 13, 40, 64, 65, 500)
        for length in lengths:
            encoder.encode_ids(Ragged.from_sequences([[5] * length]))
    assert session.device.runs == [1, 1, 2, 2, 3, 6, 7, None, None]


@pytest.mark.parametrize("most_tokens", [700, 90, 16])
def test_a_batch_that_does_not_fit_is_parted(
    most_tokens: int, paths: dict[Dialect, Path], make: MakeBackend, bundle: Bundle, expected: Vectors
) -> None:
    session = open_session(paths[Dialect.PACKED])
    with encoder_over(bundle, make(session=session)) as encoder:
        session.most_tokens = most_tokens
        short = [row for row, text in enumerate(TEXTS) if len(encoder.tokenize([text]).ragged.ids) <= most_tokens]
        assert len(short) > 20
        np.testing.assert_allclose(encoder.encode([TEXTS[row] for row in short]), expected[short], atol=2e-5)


@pytest.mark.parametrize("profiles", [((8, 512), (64, 32)), ((1, 512),), ((2, 512), (3, 20), (200, 9))])
def test_only_shapes_that_a_profile_holds_are_run(
    profiles: tuple[tuple[int, int], ...],
    paths: dict[Dialect, Path],
    make: MakeBackend,
    bundle: Bundle,
    expected: Vectors,
) -> None:
    """As a TensorRT plan needs it: buckets of other shapes are left out, batches of them are parted."""
    session = open_session(paths[Dialect.FUSED], profiles=profiles)
    backend = make(Dialect.FUSED, session=session)
    assert backend.info.n_graphs > 1
    with encoder_over(bundle, backend, Dialect.FUSED) as encoder:
        np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=2e-5)
    assert all(session.holds(*shape) for shape in session.shapes)


def test_one_sentence_that_does_not_fit_is_said_and_the_encoder_stays_usable(
    paths: dict[Dialect, Path], make: MakeBackend, bundle: Bundle, expected: Vectors
) -> None:
    session = open_session(paths[Dialect.PACKED])
    with encoder_over(bundle, make(session=session)) as encoder:
        session.most_tokens = 40
        with pytest.raises(DeviceMemoryError, match=r"no room for one sentence of 200 tokens .*memory_limit"):
            encoder.encode_ids(Ragged.from_sequences([[5] * 200, [6] * 3]))
        np.testing.assert_allclose(encoder.encode(TEXTS[:1]), expected[:1], atol=2e-5)


def test_the_largest_batch_is_what_the_memory_holds(paths: dict[Dialect, Path], make: MakeBackend) -> None:
    backend = make(session=open_session(paths[Dialect.PACKED], most_tokens=1100))
    assert backend.info.policy.max_batch_tokens == 1024
    with pytest.raises(DeviceMemoryError, match=r"no room for a batch of 1024 tokens beside the weights"):
        make(session=open_session(paths[Dialect.PACKED], most_tokens=1000))


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    paths: dict[Dialect, Path], make: MakeBackend, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(paths[Dialect.PACKED])

    def fail(binding: Any) -> None:
        raise RuntimeError("CUDA failure 719: unspecified launch failure")

    with encoder_over(bundle, make(session=session)) as encoder:
        monkeypatch.setattr(session, "run", fail)
        with pytest.raises(MexmaError, match="failed on a batch of 2 sentences, 100 tokens: CUDA failure 719") as found:
            encoder.encode_ids(Ragged.from_sequences([[5] * 50, [6] * 50]))
        assert not isinstance(found.value, DeviceError)


def test_what_a_library_captures_by_itself_is_run_and_not_captured_again(
    paths: dict[Dialect, Path], make: MakeBackend, bundle: Bundle, expected: Vectors
) -> None:
    """As TensorRT for RTX does, of the bindings that stay as they are."""
    session = open_session(paths[Dialect.PACKED])
    session.captures = True
    backend = make(session=session)
    assert (session.device.n_graphs, backend.info.n_graphs) == (0, 7)
    session.fixed_runs = 0
    with encoder_over(bundle, backend) as encoder:
        np.testing.assert_allclose([encoder.encode(text) for text in TEXTS[:9]], expected[:9], atol=2e-5)
        assert session.fixed_runs == sum(encoder.tokenize([text]).ragged.ids.size <= 64 for text in TEXTS[:9]) > 0
        np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=2e-5)


def test_a_graph_that_cannot_be_captured_is_said(
    make: MakeBackend, bundle: Bundle, make_host_device: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(device: Any, work: Callable[[], None]) -> None:
        raise DeviceError("cudaStreamEndCapture failed: cudaErrorStreamCaptureInvalidated (901)")

    monkeypatch.setattr(make_host_device, "capture", fail)
    with pytest.raises(DeviceError, match=r"no graph could be captured for 2 sentences, 8 tokens .*graphs='never'"):
        make()
    with encoder_over(bundle, make(graphs=Graphs.NEVER)) as encoder:
        encoder.encode(TEXTS[:3])


def test_vectors_stay_on_the_device_for_dlpack(make: MakeBackend, bundle: Bundle, expected: Vectors) -> None:
    with encoder_over(bundle, make()) as encoder:
        found = encoder.encode(TEXTS, output="device")
        assert isinstance(found, DeviceVectors)
        assert (found.shape, len(found), str(found.dtype), found.device) == ((300, 64), 300, "float32", "cpu:0")
        tensor, array = to_tensor(found), np.from_dlpack(found)
        np.testing.assert_allclose(array, expected, atol=2e-5)
        assert tensor.data_ptr() == array.ctypes.data
        np.testing.assert_array_equal(found.numpy(), array)
        one = encoder.encode(TEXTS[3], output="device", normalize_embeddings=True)
        np.testing.assert_allclose(np.from_dlpack(one), expected[3] / np.linalg.norm(expected[3]), atol=1e-5)
        del found
        np.testing.assert_allclose(tensor.numpy(), expected, atol=2e-5)
        with pytest.raises(BufferError, match="ask for no copy"):
            one.__dlpack__(copy=True)
        with pytest.raises(UsageError, match="gives DeviceVectors alone"):
            encoder.encode(TEXTS, output="device", convert_to_tensor=True)
        with pytest.raises(UsageError, match="expected None or 'device', got 'gpu'"):
            encoder.encode(TEXTS, output="gpu")


def test_only_packed_engines_leave_vectors_on_the_device(make: MakeBackend, bundle: Bundle) -> None:
    fused = encoder_over(bundle, make(Dialect.FUSED), Dialect.FUSED)
    with fused, pytest.raises(UsageError, match="needs a packed engine"):
        fused.encode(TEXTS, output="device")
    host = Encoder.from_bundle(bundle, dialect="fused")
    with host, pytest.raises(UsageError, match="output='device' is for a GPU, and this encoder runs on cpu"):
        host.encode(TEXTS, output="device")


def test_two_devices_share_the_batches_of_a_call(
    paths: dict[Dialect, Path], make: MakeBackend, bundle: Bundle, expected: Vectors
) -> None:
    sessions = [open_session(paths[Dialect.PACKED]) for _ in range(2)]
    several = SeveralBackends([make(session=session, graphs=Graphs.NEVER) for session in sessions])
    for session in sessions:
        session.device.runs.clear()
    with encoder_over(bundle, several) as encoder:
        assert (encoder.info.device, encoder.info.processor) == ("cpu:0,cpu:0", "the host")
        np.testing.assert_allclose(encoder.encode(TEXTS, batch_size=10), expected, atol=2e-5)
        with pytest.raises(UsageError, match="needs an encoder on one device"):
            encoder.encode(TEXTS, output="device")
    assert sorted(len(session.device.runs) for session in sessions) == [15, 15]


def test_a_device_that_computes_something_else_among_batch_mates_is_refused(
    make: MakeBackend, make_host_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a kernel would that looked into `token_offset`, or a graph that replays another batch."""
    capture = make_host_device.capture

    def wrong(device: Any, work: Callable[[], None]) -> Any:
        graph = capture(device, work)
        if device.n_graphs == 3:
            graph._works.pop()  # leaves the vectors of the run before
        return graph

    monkeypatch.setattr(make_host_device, "capture", wrong)
    with pytest.raises(EngineUnavailableError, match=r"computes wrong vectors: .* in room for 16 tokens"):
        make()


def test_every_bucket_is_measured_full_against_the_least_it_is_taken_for(
    paths: dict[Dialect, Path], make: MakeBackend
) -> None:
    session = open_session(paths[Dialect.PACKED])
    backend = make(session=session)
    session.device.runs.clear()
    done: list[tuple[int, int]] = []
    samples = backend.measure(dim=64, progress=lambda *counts: done.append(counts))
    assert [sample.n_tokens for sample in samples] == [8, 12, 16, 24, 32, 48, 64]
    assert all(len(sample.graph_ms) == len(sample.direct_ms) == N_ROUNDS for sample in samples)
    assert all(ms > 0 for sample in samples for ms in sample.graph_ms + sample.direct_ms)
    assert done == [(n, 7) for n in range(1, 8)]
    expected = [graph for number in range(1, 8) for _ in range(1 + N_ROUNDS) for graph in (number, None)]
    assert session.device.runs == expected


@given(st.integers(1, 4096), st.sampled_from(packed_buckets(512, up_to_tokens=4096)))
def test_what_is_measured_fits_where_it_is_measured(n_tokens: int, shape: Shape) -> None:
    batch = sentences_of(min(n_tokens, shape.n_tokens), shape)
    assert 1 <= len(batch) <= shape.n_sentences
    assert 1 <= batch.lengths.min() <= batch.lengths.max() <= shape.longest
    assert batch.ids.size == min(n_tokens, shape.n_tokens)


def test_buckets_stop_where_their_memory_does(
    bundle: Bundle, paths: dict[Dialect, Path], make_host_device: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = make_host_device()
    free = iter(range(1000, 0, -10))
    monkeypatch.setattr(device, "free_bytes", lambda: next(free))
    entry = entry_of(bundle, Dialect.PACKED)
    session = open_session(paths[Dialect.PACKED])
    session.device = device
    engine = largest_engine(session, device, bundle, entry, max_tokens=1024)
    captured: list[int] = []

    def capture(shape: Shape) -> None:
        captured.append(shape.n_tokens)
        if shape.n_tokens == 24:
            raise DeviceMemoryError("none left")

    shapes = packed_buckets(512, up_to_tokens=1024)
    add_buckets(engine, shapes, capture, most_bytes=25)
    assert [shape.n_tokens for shape in engine.buckets] == captured == [8, 12, 16]
    assert engine.graph_bytes == 30
    add_buckets(engine, shapes[3:], capture, most_bytes=1000)
    assert [shape.n_tokens for shape in engine.buckets] == [8, 12, 16]
    assert captured == [8, 12, 16, 24]
    assert engine.buckets[0] == Shape(n_sentences=2, longest=8, n_tokens=8)
