"""Engines on a device, by the class that runs them on a GPU, on onnxruntime's CPU provider and the host's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mexma_runtime import Encoder
from mexma_runtime.backends.gpu.buckets import packed_buckets, padded_buckets
from mexma_runtime.backends.gpu.device import Device
from mexma_runtime.backends.gpu.engine import DeviceEngine
from mexma_runtime.backends.gpu.layouts import Layout, PackedLayout, PaddedLayout, Shape
from mexma_runtime.backends.onnxruntime_library import OrtSession
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.types import Dialect, Precision, Ragged, Vectors

CAPACITY = Shape(n_sentences=64, longest=512, n_tokens=1200)
Open = Callable[..., DeviceEngine]


class Session:
    """A session whose runs a device works off."""

    captures = False

    def __init__(self, session: Any, device: Any) -> None:
        self._session, self._device = OrtSession(session, "cpu", 0), device
        self.library, self.providers = self._session.library, self._session.providers

    def holds(self, n_sentences: int, longest: int) -> bool:
        return self._session.holds(n_sentences, longest)

    def binding(self, *, is_fixed: bool) -> Any:
        return self._session.binding(is_fixed=is_fixed)

    def run(self, binding: Any) -> None:
        self._device.queue(partial(self._session.run, binding))


def session_of(path: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_mem_pattern = False
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def sessions(bundle: Bundle, packed_on_cpu: Callable[[Path], Path]) -> dict[Dialect, Any]:
    fp32 = {e.dialect: bundle.path(e.file) for e in bundle.manifest.engines if e.precision is Precision.FP32}
    return {
        Dialect.PACKED: session_of(packed_on_cpu(fp32[Dialect.PACKED])),
        Dialect.FUSED: session_of(fp32[Dialect.FUSED]),
    }


@pytest.fixture(scope="module")
def open_engine(bundle: Bundle, sessions: dict[Dialect, Any], make_host_device: Callable[[], Device]) -> Open:
    def opened(dialect: Dialect, *, capacity: Shape = CAPACITY, buckets: bool = True) -> DeviceEngine:
        manifest, text = bundle.manifest, bundle.manifest.text
        is_packed = dialect is Dialect.PACKED
        layout: Layout = PackedLayout(text) if is_packed else PaddedLayout(text)
        entry = next(e for e in manifest.engines if e.dialect is dialect and e.precision is Precision.FP32)
        device = make_host_device()
        session = Session(sessions[dialect], device)
        engine = DeviceEngine(session, device, layout, entry, dim=manifest.dim, capacity=capacity)
        if buckets:
            lattice = packed_buckets if is_packed else padded_buckets
            for shape in lattice(text.max_tokens, up_to_tokens=256):
                engine.add_bucket(shape)
        return engine

    return opened


@pytest.fixture(scope="module")
def reference(bundle: Bundle) -> Iterator[Callable[[Ragged], Vectors]]:
    """onnxruntime's CPU backend."""
    with Encoder.from_bundle(bundle, precision="fp32", dialect="fused", backend="onnxruntime", n_threads=1) as encoder:
        yield lambda ragged: encoder.encode_ids(ragged, as_pooled=True)


def random_ragged(seed: int, lengths: list[int]) -> Ragged:
    random = np.random.default_rng(seed)
    return Ragged.from_sequences([random.integers(0, 8000, length).tolist() for length in lengths])


def embedded(engine: DeviceEngine, ragged: Ragged, *, normalize: bool = False, shape: Shape | None = None) -> Vectors:
    out = np.full((len(ragged), 64), np.nan, np.float32)
    engine.launch(ragged, out, engine.place(ragged, shape), normalize=normalize).finish()
    return out


def test_a_padded_batch_may_fill_the_room_to_the_last_token(
    open_engine: Open, reference: Callable[[Ragged], Vectors]
) -> None:
    """Which sentences of the longest kind do not always do: 1,200 is no multiple of 512."""
    ragged = random_ragged(0, [20] * (CAPACITY.n_tokens // 20))
    found = embedded(open_engine(Dialect.FUSED, buckets=False), ragged)
    np.testing.assert_allclose(found, reference(ragged), atol=2e-5)


both = pytest.mark.parametrize("dialect", [Dialect.PACKED, Dialect.FUSED])


@both
@settings(max_examples=25)
@given(seed=st.integers(0, 1000), lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12))
def test_vectors_are_the_same_in_every_bucket_and_without(
    dialect: Dialect,
    seed: int,
    lengths: list[int],
    open_engine: Open,
    reference: Callable[[Ragged], Vectors],
) -> None:
    engine, ragged = open_engine(dialect), random_ragged(seed, lengths)
    expected = reference(ragged)

    np.testing.assert_allclose(embedded(engine, ragged), expected, atol=2e-5)
    np.testing.assert_allclose(embedded(engine, ragged, shape=engine.capacity), expected, atol=2e-5)
    for shape in engine.buckets:
        if engine.fits(ragged, shape):
            np.testing.assert_allclose(embedded(engine, ragged, shape=shape), expected, atol=2e-5)
