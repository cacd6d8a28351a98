"""A backend put together from a session and a device: as large a batch as fits, graphs, and both checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from mexma_runtime.backends.base import BackendInfo
from mexma_runtime.backends.gpu.backend import DeviceBackend, Worker
from mexma_runtime.backends.gpu.buckets import long_buckets, packed_buckets, padded_buckets, size
from mexma_runtime.backends.gpu.device import Device
from mexma_runtime.backends.gpu.engine import N_STAGING_BUFFERS, DeviceEngine
from mexma_runtime.backends.gpu.layouts import Layout, PackedLayout, PaddedLayout, Shape
from mexma_runtime.backends.gpu.session import Session
from mexma_runtime.backends.gpu.two_kernels import TwoKernelSession, each_kernel
from mexma_runtime.backends.options import Graphs
from mexma_runtime.batching import BatchPolicy, Grouping
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry, Manifest
from mexma_runtime.bundle.tuning import Tuning
from mexma_runtime.errors import DeviceMemoryError, EngineUnavailableError
from mexma_runtime.types import Dialect, Precision, Ragged, Vectors

MAX_ROWS = 8192
"""Sentences in a batch."""
MIN_BATCH_TOKENS = 1024
MAX_GRAPH_BYTES = 1 << 30
"""Of the device's memory, for buckets and their graphs."""
LARGEST_DIFFERENCE = {Precision.FP32: 1e-3, Precision.FP16: 3e-2, Precision.INT8: 0.1, Precision.FP8: 0.1}
"""Most that a vector may differ, as a share of its length, between ways to run it that are compared at loading.

What is looked for are wrong kernels and broken graphs, whose vectors have nothing in common; rounding in another
order stays far below.
"""
PROBE_LENGTHS = (7, 3, 12)


def layout_for(manifest: Manifest, entry: EngineEntry) -> Layout:
    """How batches lie in the inputs of `entry`."""
    return PackedLayout(manifest.text) if entry.dialect is Dialect.PACKED else PaddedLayout(manifest.text)


def assemble(
    bundle: Bundle,
    entry: EngineEntry,
    session: Session,
    device: Device,
    worker: Worker,
    *,
    graphs: Graphs,
    tuning: Tuning,
    version: str,
    processor: str,
    spinning: bool,
    make_value: Callable[[tuple[int, ...]], Any],
    attention: str = "",
    most_rows: int = MAX_ROWS,
) -> DeviceBackend:
    """Called in the worker's thread, which made `session` and `device`.

    EngineUnavailableError where the device gives a sentence another vector among batch-mates, or in a graph, than
    alone; DeviceMemoryError where not even a small batch fits, or the largest does not fit in both of two sessions.
    """
    manifest, text, precision = bundle.manifest, bundle.manifest.text, entry.precision
    is_packed = entry.dialect is Dialect.PACKED
    engine = largest_engine(session, device, bundle, entry, max_tokens=tuning.max_batch_tokens, most_rows=most_rows)
    sentences = probe(manifest.model.vocab_size, text.max_tokens)
    expected = check_kernels(engine, sentences, dim=manifest.dim, precision=precision)
    if graphs is not Graphs.NEVER:
        up_to_tokens = min(tuning.graph_up_to_tokens, engine.capacity.n_tokens)
        shapes = (packed_buckets if is_packed else padded_buckets)(text.max_tokens, up_to_tokens=up_to_tokens)
        if isinstance(session, TwoKernelSession):
            above = session.flash_above_mean_tokens
            shapes += long_buckets(text.max_tokens, up_to_tokens=up_to_tokens, above_mean_tokens=above)
            shapes.sort(key=size)

        def capture(shape: Shape) -> None:
            if graphs is Graphs.AT_LOAD:
                check_bucket(engine, shape, sentences, expected, precision=precision)

        add_buckets(engine, filter(engine.can_run, shapes), capture)
    info = BackendInfo(
        backend=session.library,
        version=version,
        device=f"{device.kind}:{device.index}",
        providers=session.providers,
        n_threads=1,
        spinning=spinning,
        processor=processor,
        policy=BatchPolicy(
            max_batch_tokens=engine.capacity.n_tokens,
            max_batch_rows=engine.capacity.n_sentences,
            grouping=Grouping.IN_ORDER if is_packed else Grouping.PADDED,
        ),
        normalizes=layout_for(manifest, entry).normalizes,
        n_pending=N_STAGING_BUFFERS,
        n_graphs=len(engine.buckets),
        graph_bytes=engine.graph_bytes,
        attention=str(session) if isinstance(session, TwoKernelSession) else attention,
    )
    return DeviceBackend(worker, engine, info, make_value)


def largest_engine(
    session: Session, device: Device, bundle: Bundle, entry: EngineEntry, *, max_tokens: int, most_rows: int = MAX_ROWS
) -> DeviceEngine:
    """An engine with room for batches of `max_tokens`, or of half as many, a quarter, ... until they fit.

    Such a batch is run once by each kernel: afterwards the library has all the memory that any batch needs, and takes
    no more. Two sessions are not given smaller batches than one would have: DeviceMemoryError at once.
    """
    manifest = bundle.manifest
    layout, longest = layout_for(manifest, entry), manifest.text.max_tokens
    while True:
        capacity = Shape(n_sentences=min(most_rows, max_tokens), longest=longest, n_tokens=max_tokens)
        try:
            return _tried(DeviceEngine(session, device, layout, entry, dim=manifest.dim, capacity=capacity), device)
        except DeviceMemoryError as error:
            if isinstance(session, TwoKernelSession):
                raise
            max_tokens //= 2
            if max_tokens < max(MIN_BATCH_TOKENS, longest):
                raise DeviceMemoryError(
                    f"{device.kind}:{device.index}: no room for a batch of {2 * max_tokens} tokens beside the weights "
                    f"({error}): raise memory_limit, or make room on the device"
                ) from error


def _tried(engine: DeviceEngine, device: Device) -> DeviceEngine:
    """A function, so that nothing holds the memory of one that fails while the next is made."""
    taken_bytes = 0
    for only in each_kernel(engine.session):
        free_bytes = device.free_bytes()
        with only:
            engine.run_largest()
        taken_bytes = free_bytes - device.free_bytes()
    if isinstance(engine.session, TwoKernelSession):
        engine.session.flash_bytes += taken_bytes
    return engine


def add_buckets(
    engine: DeviceEngine,
    shapes: Iterable[Shape],
    capture: Callable[[Shape], None],
    *,
    most_bytes: int = MAX_GRAPH_BYTES,
) -> None:
    """Give `engine` a bucket for each shape, the smallest first, and `capture` it.

    Ends where they have taken more than `most_bytes` of the device, or where it has no memory for the next.
    """
    for shape in shapes:
        if engine.graph_bytes > most_bytes:
            return
        try:
            engine.add_bucket(shape)
            capture(shape)
        except DeviceMemoryError:
            engine.remove_bucket(shape)
            return


def probe(vocab_size: int, max_tokens: int) -> Ragged:
    """Sentences of different lengths to compare ways to run by, ids spread over the vocabulary."""
    lengths = [min(length, max_tokens) for length in PROBE_LENGTHS]
    ids = np.linspace(vocab_size // 3, vocab_size - 1, sum(lengths)).astype(np.int32)
    return Ragged.from_lengths(ids, lengths)


def check_batch_mates(engine: DeviceEngine, sentences: Ragged, *, dim: int, precision: Precision) -> Vectors:
    """Vectors of `sentences`, each run alone; EngineUnavailableError where running them together gives others."""
    alone = np.empty((len(sentences), dim), dtype=np.float32)
    for row in range(len(sentences)):
        one = sentences.part(row, row + 1)
        place = engine.place(one, engine.capacity)
        engine.launch(one, alone[row : row + 1], place, normalize=False).finish()
    if engine.fits(sentences, engine.capacity):  # a plan may be for one sentence at a time
        _check(engine, engine.capacity, sentences, alone, precision=precision)
    return alone


def check_kernels(engine: DeviceEngine, sentences: Ragged, *, dim: int, precision: Precision) -> Vectors:
    """The same by each attention kernel of the session; the vectors are the first one's, and the second's, too."""
    first, *others = each_kernel(engine.session)
    with first:
        alone = check_batch_mates(engine, sentences, dim=dim, precision=precision)
    for only in others:
        with only:
            check_batch_mates(engine, sentences, dim=dim, precision=precision)
            _check(engine, engine.capacity, sentences, alone, precision=precision)
    return alone


def check_bucket(
    engine: DeviceEngine, shape: Shape, sentences: Ragged, expected: Vectors, *, precision: Precision
) -> None:
    """Capture the graph of a bucket, and replay it with as many sentences as fit: their vectors are the `expected`.

    Each time with others first, so that what the run before has left is not taken for a result.
    """
    fitting = [row for row in range(len(sentences)) if engine.fits(sentences.part(row, row + 1), shape)]
    for number in range(len(sentences)):
        rows = np.roll(fitting, number)
        while not engine.fits(sentences.take(rows), shape):
            rows = rows[:-1]
        _check(engine, shape, sentences.take(rows), expected[rows], precision=precision)


def _check(engine: DeviceEngine, shape: Shape, sentences: Ragged, expected: Vectors, *, precision: Precision) -> None:
    found = np.empty_like(expected)
    engine.launch(sentences, found, engine.place(sentences, shape), normalize=False).finish()
    differences = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    if not np.all(differences <= LARGEST_DIFFERENCE[precision]):
        raise EngineUnavailableError(
            f"this device computes wrong vectors: sentences run together, in room for {shape.n_tokens} tokens, differ "
            f"by {differences.max():.2g} of their length from the same sentences run alone, and at most "
            f"{LARGEST_DIFFERENCE[precision]:g} is expected. Other engines of the bundle use other kernels: load "
            "one of another dialect or backend, and report this with the output of `mexma doctor`"
        )
