"""What only a GPU can show, on the tiny stand-in: `pytest -m gpu tests/gpu`, the first step of `make gpu-check`."""

from __future__ import annotations

import gc
import re
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from mexma_export.bundle.pipeline import export
from mexma_export.bundle.request import ExportRequest
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.parity.figures import compare
from mexma_runtime import Encoder
from mexma_runtime.backends import Attention, backend_statuses, tune
from mexma_runtime.backends.gpu.cuda_device import call, import_cudart
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.errors import DeviceMemoryError, EngineUnavailableError, UsageError
from mexma_runtime.types import Dialect, Precision, Ragged, Vectors

pytestmark = pytest.mark.gpu

ENGINES = ("packed.fp32", "fused.fp32", "packed.fp16", "fused.fp16")
MAX_DIFFERENCE = {"fp32": 1e-4, "fp16": 1e-2}
MIN_COSINE = {"fp32": 0.999999, "fp16": 0.9999}
MIB = 1 << 20
MAX_LOST_BYTES = 64 * MIB
# Of one sentence each, around the edges of buckets, and past the largest.
LENGTHS = (1, 2, 3, 7, 8, 9, 12, 13, 31, 32, 33, 64, 65, 127, 128, 129, 200, 256, 384, 511, 512)
TEXTS = [f"{'The ferry leaves at noon. ' * (1 + n % 7)}{n}" for n in range(300)]


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    """Skips what cannot run here, and says why."""
    for status in backend_statuses():
        if (status.name, status.device) == ("onnxruntime", "cuda") and status.problem:
            pytest.skip(status.problem)


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All engines that a GPU runs; on a CPU the fused ones serve as what to compare with."""
    out = tmp_path_factory.mktemp("bundle") / "gpu"
    plan = ExportRequest(
        out=out,
        precisions=(Precision.FP32, Precision.FP16),
        dialects=(Dialect.FUSED, Dialect.PACKED),
        check_parity=False,
    )
    export(resolve_source(str(tiny_checkpoint)), plan)
    return out


@pytest.fixture(scope="module")
def sentences() -> Ragged:
    """One of each of LENGTHS."""
    return random_ids(LENGTHS)


@pytest.fixture(scope="module")
def expected(bundle: Path, sentences: Ragged) -> Vectors:
    """Their vectors, in fp32 on the CPU."""
    with Encoder.load(bundle, engine="fused.fp32", backend="onnxruntime") as encoder:
        return encoder.encode_ids(sentences)


@pytest.fixture(scope="module")
def packed(bundle: Path) -> Iterator[Encoder]:
    """The engine that is chosen by default."""
    with Encoder.load(bundle, device="cuda") as encoder:
        yield encoder


def random_ids(lengths: Any, seed: int = 0) -> Ragged:
    return Ragged.from_lengths(np.random.default_rng(seed).integers(5, 8192, sum(lengths), dtype=np.int32), lengths)


def one_by_one(encoder: Encoder, sentences: Ragged) -> Vectors:
    rows = [encoder.encode_ids(sentences.part(row, row + 1)) for row in range(len(sentences))]
    vectors: Vectors = np.concatenate(rows)
    return vectors


def assert_agree(found: Vectors, expected: Vectors, precision: str) -> None:
    figures = compare(found, expected)
    assert figures.max_abs_difference <= MAX_DIFFERENCE[precision], figures
    assert figures.cosine_min >= MIN_COSINE[precision], figures


def free_bytes() -> int:
    gc.collect()
    return int(torch.cuda.mem_get_info()[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_vectors_are_those_of_the_cpu(bundle: Path, engine: str, sentences: Ragged, expected: Vectors) -> None:
    precision = engine.rpartition(".")[2]
    with Encoder.load(bundle, engine=engine, device="cuda") as encoder:
        assert_agree(encoder.encode_ids(sentences), expected, precision)
        # Twice: what is replayed a second time must not be what was there before.
        assert_agree(one_by_one(encoder, sentences), expected, precision)
        assert_agree(one_by_one(encoder, sentences), expected, precision)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_bucket_gives_what_no_bucket_gives(bundle: Path, engine: str) -> None:
    precision = engine.rpartition(".")[2]
    with Encoder.load(bundle, engine=engine, device="cuda") as encoder:
        backend: Any = encoder._backend
        engine_of_device = backend._engine
        assert len(engine_of_device.buckets) > 10

        def run(batch: Ragged, shape: Any) -> Vectors:
            out = np.empty((len(batch), encoder.info.dim), dtype=np.float32)
            backend._worker.run(
                lambda: engine_of_device.launch(
                    batch, out, engine_of_device.place(batch, shape), normalize=False
                ).finish(),
            )
            return out

        for number, shape in enumerate(engine_of_device.buckets):
            n = max(1, min(shape.n_sentences, shape.n_tokens // 5))
            full = random_ids([min(shape.longest, shape.n_tokens // n)] * n, seed=number)
            for batch in (full, random_ids([1], seed=number), full):
                assert engine_of_device.fits(batch, shape)
                assert_agree(run(batch, shape), run(batch, engine_of_device.capacity), precision)


@pytest.mark.parametrize("engine", ["packed.fp16", "fused.fp16"])
@pytest.mark.parametrize("graphs", ["first-use", "never"])
def test_vectors_do_not_depend_on_when_graphs_are_captured(
    bundle: Path, engine: str, graphs: str, sentences: Ragged, expected: Vectors
) -> None:
    with Encoder.load(bundle, engine=engine, device="cuda", graphs=graphs) as encoder:
        assert (encoder.info.n_graphs > 0) == (graphs != "never")
        # When it is captured, and after.
        for _ in range(3):
            assert_agree(one_by_one(encoder, sentences), expected, "fp16")


def test_graphs_are_captured_while_another_thread_uses_the_gpu(
    bundle: Path, sentences: Ragged, expected: Vectors
) -> None:
    is_over = threading.Event()

    def compute() -> None:
        while not is_over.is_set():
            torch.ones(1 << 20, device="cuda").sum().item()
            torch.cuda.empty_cache()

    with ThreadPoolExecutor(1) as pool:
        computing = pool.submit(compute)
        try:
            with Encoder.load(bundle, device="cuda") as encoder:
                assert_agree(one_by_one(encoder, sentences), expected, "fp16")
        finally:
            is_over.set()
        computing.result()


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_either_attention_kernel_gives_the_vectors(
    bundle: Path, precision: str, sentences: Ragged, expected: Vectors
) -> None:
    for attention in Attention:
        with Encoder.load(bundle, engine=f"packed.{precision}", device="cuda", attention=attention) as encoder:
            assert_agree(encoder.encode_ids(sentences), expected, precision)
    with pytest.raises(UsageError, match=r"attention=flash is for packed engines, and fused\.fp16 was chosen"):
        Encoder.load(bundle, engine="fused.fp16", device="cuda", attention="flash")


@pytest.mark.parametrize(("kernel", "length", "n"), [("efficient", 11, 800), ("flash", 300, 30)])
def test_auto_is_efficient_below_its_crossover_and_flash_above(bundle: Path, kernel: str, length: int, n: int) -> None:
    """The same bits, in batches too large for a bucket; the other kernel adds up in another order."""
    batch, vectors = random_ids([length] * n), {}
    for attention in Attention:
        with Encoder.load(bundle, engine="packed.fp16", device="cuda", attention=attention) as encoder:
            vectors[attention.value] = encoder.encode_ids(batch)
    np.testing.assert_array_equal(vectors["auto"], vectors[kernel])
    assert not np.array_equal(vectors["efficient"], vectors["flash"])


def test_single_sentences_have_graphs_of_either_kernel(bundle: Path, sentences: Ragged, expected: Vectors) -> None:
    with Encoder.load(bundle, device="cuda") as encoder:
        n_graphs = encoder.info.n_graphs
    with Encoder.load(bundle, device="cuda", attention="auto") as encoder:
        assert encoder.info.n_graphs > n_graphs
        for _ in range(2):
            assert_agree(one_by_one(encoder, sentences), expected, "fp16")


def test_both_sessions_read_the_weights_in_one_place(bundle: Path) -> None:
    """With zeros in place of all embeddings and products, every sentence is like another to either kernel."""
    with Encoder.load(bundle, device="cuda", attention="auto", graphs="never") as encoder:
        backend: Any = encoder._backend
        weights = backend._engine.session._sessions[Attention.FLASH]._keeps
        batches = [random_ids([length] * 2) for length in (10, 300)]
        for batch in batches:
            first, second = encoder.encode_ids(batch)
            assert np.abs(first - second).max() > 0.1
        call(import_cudart().cudaMemset, weights._memory.pointer, 0, weights.n_bytes)
        for batch in batches:
            first, second = encoder.encode_ids(batch)
            np.testing.assert_allclose(first, second, atol=1e-2)


def test_what_the_second_session_takes_is_told(bundle: Path) -> None:
    Encoder.load(bundle, device="cuda", attention="auto").close()  # makes what CUDA keeps for the whole process
    before, taken, told = free_bytes(), {}, ""
    for attention in ("efficient", "auto"):
        with Encoder.load(bundle, device="cuda", attention=attention, graphs="never") as encoder:
            taken[attention], told = before - free_bytes(), encoder.info.attention
        assert before - free_bytes() <= MAX_LOST_BYTES
    found = re.fullmatch(r"efficient for .* up to 64 .*, flash above; flash took ([\d,]+) MB more, beside .*", told)
    assert found
    told_bytes = 1e6 * int(found[1].replace(",", ""))
    assert abs(taken["auto"] - taken["efficient"] - told_bytes) <= MAX_LOST_BYTES


def test_where_two_sessions_have_no_room_efficient_runs_alone(bundle: Path) -> None:
    with Encoder.load(bundle, device="cuda", engine="packed.fp32", attention="auto") as encoder:
        assert encoder.info.attention == "efficient alone: fp32 has no flash kernel"
    with Encoder.load(bundle, device="cuda") as encoder:
        largest = encoder.info.max_batch_tokens
    # The least limit, to a sixteenth, with which the largest batch fits.
    limit = 64 * MIB
    while True:
        try:
            with Encoder.load(bundle, device="cuda", memory_limit=limit) as encoder:
                if encoder.info.max_batch_tokens == largest:
                    break
        except (DeviceMemoryError, EngineUnavailableError):
            pass
        limit += limit // 16
    with Encoder.load(bundle, device="cuda", attention="auto", memory_limit=limit) as encoder:
        assert encoder.info.attention.startswith("efficient alone: there is no room for flash beside it (")
        assert encoder.info.max_batch_tokens == largest


def test_what_tuning_finds_is_used(bundle: Path, tmp_path: Path, sentences: Ragged, expected: Vectors) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    tuned = tune(Bundle.open(folder), "cuda")
    tuning = tuned.tuning
    assert tuned.file.is_relative_to(folder)
    assert [sample.mean_tokens for sample in tuning.attention_samples][-1] == 512
    with Encoder.load(folder, device="cuda") as encoder:
        backend: Any = encoder._backend
        assert all(shape.n_tokens <= tuning.graph_up_to_tokens for shape in backend._engine.buckets)
        assert_agree(encoder.encode_ids(sentences), expected, "fp16")


def test_fp16_packed_is_chosen_and_all_of_it_runs_on_the_gpu(packed: Encoder) -> None:
    """Loading refuses a session that has a node elsewhere."""
    info = packed.info
    assert (info.engine, info.device, info.providers[0]) == ("packed.fp16", "cuda:0", "CUDAExecutionProvider")
    assert info.n_graphs > 10


def test_weights_are_joined_once_and_not_in_each_run(packed: Encoder) -> None:
    backend: Any = packed._backend
    placed = backend._engine._session._inner.get_provider_graph_assignment_info()
    operators = {node.op_type for part in placed for node in part.get_nodes()}
    assert "PackedMultiHeadAttention" in operators
    assert "Concat" not in operators


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("n", [1, 5, 300])
def test_torch_takes_vectors_from_the_device(packed: Encoder, normalize: bool, n: int) -> None:
    on_device = packed.encode(TEXTS[:n], output="device", normalize_embeddings=normalize)
    tensor = from_dlpack(on_device)
    assert tensor.is_cuda
    assert tensor.shape == (n, packed.info.dim)
    on_host = packed.encode(TEXTS[:n], normalize_embeddings=normalize)
    np.testing.assert_allclose(tensor.cpu().numpy(), on_host, atol=1e-3)
    assert np.allclose(np.linalg.norm(on_host, axis=1), 1, atol=1e-4) == normalize
    # The memory is the tensor's own: later calls leave it as it is.
    del on_device
    packed.encode(TEXTS)
    np.testing.assert_allclose(tensor.cpu().numpy(), on_host, atol=1e-3)


def test_memory_that_is_too_small_is_said_and_the_next_load_works(
    bundle: Path, sentences: Ragged, expected: Vectors
) -> None:
    with pytest.raises((DeviceMemoryError, EngineUnavailableError), match="memory_limit"):
        Encoder.load(bundle, device="cuda", memory_limit=1 * MIB)
    with Encoder.load(bundle, device="cuda") as encoder:
        assert_agree(encoder.encode_ids(sentences), expected, "fp16")


@pytest.mark.parametrize("engine", ["packed.fp16", "fused.fp16"])
def test_memory_stays_as_it_is_over_random_shapes(bundle: Path, engine: str) -> None:
    random = np.random.default_rng(0)
    settled = 0
    with Encoder.load(bundle, engine=engine, device="cuda") as encoder:
        for number in range(500):
            lengths = random.integers(1, int(random.choice([8, 32, 128, 512])) + 1, size=random.integers(1, 65))
            encoder.encode_ids(random_ids(lengths, seed=number))
            if number == 49:
                settled = free_bytes()
        assert settled - free_bytes() <= MAX_LOST_BYTES


def test_threads_share_an_encoder(packed: Encoder) -> None:
    batches = [random_ids([1 + n % 70] * (1 + n % 9), seed=n) for n in range(200)]
    expected = [packed.encode_ids(batch) for batch in batches]

    def encode(number: int) -> NDArray[np.float32]:
        return packed.encode_ids(batches[number])

    with ThreadPoolExecutor(2) as pool:
        for found, known in zip(pool.map(encode, range(len(batches))), expected, strict=True):
            np.testing.assert_allclose(found, known, atol=MAX_DIFFERENCE["fp16"])


def test_closing_gives_memory_back(bundle: Path) -> None:
    # The first load makes what CUDA keeps for the whole process.
    Encoder.load(bundle, device="cuda").close()
    before = free_bytes()
    encoder = Encoder.load(bundle, device="cuda")
    assert free_bytes() < before
    encoder.close()
    assert before - free_bytes() <= MAX_LOST_BYTES
