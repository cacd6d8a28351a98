"""Long sentences on onnxruntime's CPU: attention in blocks, memory that is given back, and what does not fit."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from mexma_runtime import Encoder
from mexma_runtime.backends import open_backend
from mexma_runtime.backends.cpu import attention
from mexma_runtime.backends.cpu.attention import SWITCH, reason_for_all_scores, require_memory, unmasked
from mexma_runtime.backends.options import CpuOptions
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.errors import InputError
from mexma_runtime.hardware import detect_hardware
from mexma_runtime.types import Dialect, Ragged

N_TOKENS, N_HEADS = 2048, 32
SCORES_BYTES = N_HEADS * N_TOKENS**2 * 4
LONG_RUN = """
import sys
from mexma_runtime import Encoder
from mexma_runtime.types import Ragged

def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

folder, engine, n_tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Encoder.load(folder, engine=engine, backend="onnxruntime", n_threads=1) as encoder:
    encoder.encode_ids(Ragged.from_sequences([[0] * 500]))
    before = kilobytes("VmHWM")
    encoder.encode_ids(Ragged.from_sequences([[0] * n_tokens]))
    print(kilobytes("VmHWM") - before, kilobytes("VmRSS") - before)
"""
"""Prints what a long sentence takes beyond a short one at its peak, and what of it stays taken, in kB."""

in_blocks = pytest.mark.skipif(reason_for_all_scores() is not None, reason=f"{reason_for_all_scores()}")


@pytest.fixture(scope="module")
def long_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow model with many heads and 2,048 positions, in fp32."""
    from mexma_export.bundle.pipeline import export
    from mexma_export.bundle.request import ExportRequest
    from mexma_export.checkpoint import standin
    from mexma_export.checkpoint.sources import resolve_source
    from mexma_runtime.types import Precision

    folder = tmp_path_factory.mktemp("long")
    tiny = standin.STANDINS["tiny"]
    model = dataclasses.replace(tiny.model, n_layers=2, n_heads=N_HEADS, n_positions=N_TOKENS + 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standin, "STANDINS", {"long": dataclasses.replace(tiny, model=model)})
        standin.write_standin("long", folder / "checkpoint")
    request = ExportRequest(out=folder / "bundle", precisions=(Precision.FP32,), check_parity=False)
    export(resolve_source(str(folder / "checkpoint")), request)
    return folder / "bundle"


def memory_of_a_long_sentence(bundle: Path, engine: str, **environment: str) -> tuple[int, int]:
    """Bytes at the peak, and kept, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", LONG_RUN, str(bundle), engine, str(N_TOKENS)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    peak, kept = (int(word) * 1024 for word in done.stdout.split())
    return peak, kept


def padded_engines(folder: Path) -> list[EngineEntry]:
    return [engine for engine in Bundle.open(folder).manifest.engines if engine.dialect is not Dialect.PACKED]


@in_blocks
@pytest.mark.parametrize("dialect", ["fused", "portable"])
def test_a_long_sentence_takes_a_fraction_of_its_scores(long_bundle: Path, dialect: str) -> None:
    peak, _ = memory_of_a_long_sentence(long_bundle, f"{dialect}.fp32")

    assert peak < SCORES_BYTES / 10


def test_what_a_long_sentence_took_is_given_back(long_bundle: Path) -> None:
    peak, kept = memory_of_a_long_sentence(long_bundle, "fused.fp32", **{SWITCH: "1"})

    assert peak > SCORES_BYTES
    assert kept < SCORES_BYTES / 10


def test_engines_run_attention_without_a_mask_and_nothing_that_made_it(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    for engine in padded_engines(tiny_bundle):
        before = onnx.load(bundle.path(engine.file), load_external_data=False)

        after = onnx.load_from_string(unmasked(bundle.path(engine.file).read_bytes(), bundle.manifest.model.n_heads))

        attentions = [node for node in after.graph.node if node.op_type == "MultiHeadAttention"]
        assert len(attentions) == bundle.manifest.model.n_layers
        assert {node.attribute[0].i for node in attentions} == {bundle.manifest.model.n_heads}
        names = {name for node in after.graph.node for name in (*node.input, *node.output)}
        assert not [name for name in names if name.startswith("attention_mask")]
        assert not [node for node in after.graph.node if node.op_type == "Softmax"]
        assert (after.graph.input, after.graph.output) == (before.graph.input, before.graph.output)
        assert after.graph.initializer == before.graph.initializer


def test_a_graph_without_attention_comes_back_as_it_is(bundle_folder: Path) -> None:
    bundle = Bundle.open(bundle_folder)
    graph = bundle.path(bundle.manifest.engines[0].file).read_bytes()

    assert unmasked(graph, 4) is graph


@pytest.mark.parametrize("length", [1, 2, 17, 512])
def test_vectors_are_those_of_the_graph_in_the_bundle(tiny_bundle: Path, length: int) -> None:
    import onnxruntime

    bundle = Bundle.open(tiny_bundle)
    ids = np.random.default_rng(length).integers(5, 8000, (2, length), dtype=np.int32)
    positions = np.tile(np.arange(2, length + 2, dtype=np.int32), (2, 1))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": positions}
    for engine in padded_engines(tiny_bundle):
        session = onnxruntime.InferenceSession(str(bundle.path(engine.file)), providers=["CPUExecutionProvider"])
        (expected,) = session.run(None, feeds)
        backend = open_backend(bundle, engine, CpuOptions(n_threads=1), backend="onnxruntime")
        vectors = np.empty_like(expected)
        backend.start(Ragged.from_sequences(ids.tolist()), vectors, normalize=False)()
        atol = 1e-5 if engine.precision == "fp32" else 2e-2
        np.testing.assert_allclose(vectors, expected, atol=atol, err_msg=engine.name)


def test_sentences_of_several_lengths_are_computed_without_padding(tiny_bundle: Path) -> None:
    """The encoder never gives such a batch to this backend; who does gets the vectors that each has alone."""
    bundle = Bundle.open(tiny_bundle)
    random = np.random.default_rng(3)
    rows = [random.integers(5, 8000, length).tolist() for length in (3, 17, 3, 1, 60)]
    for engine in padded_engines(tiny_bundle):
        backend = open_backend(bundle, engine, CpuOptions(n_threads=1), backend="onnxruntime")
        vectors, alone = (np.empty((5, bundle.manifest.dim), dtype=np.float32) for _ in range(2))
        backend.start(Ragged.from_sequences(rows), vectors, normalize=False)()
        for row, ids in enumerate(rows):
            backend.start(Ragged.from_sequences([ids]), alone[row : row + 1], normalize=False)()
        np.testing.assert_allclose(vectors, alone, atol=1e-5, err_msg=engine.name)


def test_scores_that_do_not_fit_are_refused_before_anything_runs(
    long_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = dataclasses.replace(detect_hardware(), memory_available_bytes=SCORES_BYTES - 1)
    monkeypatch.setattr(attention, "detect_hardware", lambda: short)
    monkeypatch.setattr(attention, "l2_cache_bytes", lambda: 0)
    fitting, long = ([0] * n for n in (N_TOKENS - 1, N_TOKENS))
    with Encoder.load(long_bundle, engine="fused.fp32", backend="onnxruntime") as encoder:
        refused = r"input 1: a text of 2048 tokens takes 0\.5 GB .*L2 cache.*backend='openvino'"
        with pytest.raises(InputError, match=refused) as caught:
            encoder.encode_ids(Ragged.from_sequences([fitting, long]))
        assert caught.value.index == 1
        assert np.all(np.isfinite(encoder.encode_ids(Ragged.from_sequences([fitting]))))


def test_a_refused_text_is_counted_over_all_windows(long_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none_free = dataclasses.replace(detect_hardware(), memory_available_bytes=0)
    monkeypatch.setattr(attention, "detect_hardware", lambda: none_free)
    monkeypatch.setattr(attention, "l2_cache_bytes", lambda: 0)
    with Encoder.load(long_bundle, engine="fused.fp32", backend="onnxruntime") as encoder:
        vectors = encoder.encode_iter(iter(["short", "short", "short", "long " * 600]), window=2)
        assert len(next(vectors))
        with pytest.raises(InputError, match="input 3: a text of ") as caught:
            list(vectors)
    assert caught.value.index == 3


def test_memory_that_nobody_knows_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = dataclasses.replace(detect_hardware(), memory_available_bytes=None)
    monkeypatch.setattr(attention, "detect_hardware", lambda: unknown)

    require_memory(1_000_000, 1000, "a reason")


@pytest.mark.parametrize(
    ("l2_bytes", "switch", "reason"),
    [
        (1 << 20, None, None),
        (1 << 20, "0", None),
        (None, None, None),
        (0, None, "the C library does not know the size of the L2 cache (getconf LEVEL2_CACHE_SIZE)"),
        (1 << 20, "1", "ORT_DISABLE_FLASH_ATTENTION is set"),
    ],
)
def test_why_all_scores_are_kept(
    monkeypatch: pytest.MonkeyPatch, l2_bytes: int | None, switch: str | None, reason: str | None
) -> None:
    monkeypatch.setattr(attention, "l2_cache_bytes", lambda: l2_bytes)
    monkeypatch.delenv(SWITCH, raising=False)
    if switch is not None:
        monkeypatch.setenv(SWITCH, switch)

    assert reason_for_all_scores() == reason
