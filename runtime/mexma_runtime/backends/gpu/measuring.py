"""Measuring, on the device itself, where captured graphs are faster, and where either attention kernel."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from mexma_runtime.backends.gpu.engine import DeviceEngine
from mexma_runtime.backends.gpu.layouts import Shape
from mexma_runtime.backends.gpu.two_kernels import TwoKernelSession
from mexma_runtime.backends.options import Attention
from mexma_runtime.bundle.tuning import AttentionSample, Sample
from mexma_runtime.types import Ragged

N_ROUNDS = 20
SENTENCE_TOKENS = 16
"""Tokens of the sentences that are measured, but for the last of a batch."""
MEAN_TOKENS = (8, 16, 24, 32, 48, 64, 96, 128, 256, 512)
"""Of the batches that both attention kernels are measured with."""
KERNEL_TOKENS = 16384
"""Of each of these: as many as keep a large GPU busy."""


def measure_buckets(
    engine: DeviceEngine, *, dim: int, n_rounds: int = N_ROUNDS, progress: Callable[[int, int], None] | None = None
) -> list[Sample]:
    """Each bucket of `engine` full, in turns with the least batch that it would be taken for, run without a graph.

    Of buckets of one size, the one for the most sentences.
    """
    shapes = list({shape.n_tokens: shape for shape in engine.buckets}.values())
    least = Shape(n_sentences=0, longest=0, n_tokens=0)
    samples = []
    for number, (below, shape) in enumerate(pairwise([least, *shapes])):
        full, barely = (sentences_of(n, shape) for n in (shape.n_tokens, below.n_tokens + 1))
        graph_ms, direct_ms = [], []
        for _ in range(1 + n_rounds):
            graph_ms.append(_run_ms(engine, full, shape, dim))
            direct_ms.append(_run_ms(engine, barely, engine.capacity, dim))
        # The first round may capture the graph.
        samples.append(Sample(n_tokens=shape.n_tokens, graph_ms=graph_ms[1:], direct_ms=direct_ms[1:]))
        if progress:
            progress(number + 1, len(shapes))
    return samples


def measure_kernels(
    engine: DeviceEngine, *, dim: int, n_rounds: int = N_ROUNDS, progress: Callable[[int, int], None] | None = None
) -> list[AttentionSample]:
    """Batches of several mean lengths by either attention kernel, in turns; none where `engine` has but one."""
    session = engine.session
    if not isinstance(session, TwoKernelSession):
        return []
    most = engine.capacity
    lengths = [length for length in MEAN_TOKENS if length <= most.longest]
    samples = []
    for number, mean_tokens in enumerate(lengths):
        batch = spread(mean_tokens, most.longest, n_tokens=min(KERNEL_TOKENS, most.n_tokens // 2))
        times_ms: dict[Attention, list[float]] = {Attention.EFFICIENT: [], Attention.FLASH: []}
        for _ in range(1 + n_rounds):
            for kernel, kernel_ms in times_ms.items():
                with session.only(kernel):
                    kernel_ms.append(_run_ms(engine, batch, most, dim))
        efficient_ms, flash_ms = (kernel_ms[1:] for kernel_ms in times_ms.values())
        samples.append(AttentionSample(mean_tokens=mean_tokens, efficient_ms=efficient_ms, flash_ms=flash_ms))
        if progress:
            progress(number + 1, len(lengths))
    return samples


def spread(mean_tokens: int, longest: int, *, n_tokens: int) -> Ragged:
    """About `n_tokens` tokens in sentences whose lengths are spread evenly about their mean, as widely as they can be.

    From 1 token, or up to `longest`: texts of one length would all fill their tiles alike.
    """
    width = min(mean_tokens - 1, longest - mean_tokens)
    n_sentences = max(1, n_tokens // mean_tokens)
    lengths = np.linspace(mean_tokens - width, mean_tokens + width, n_sentences).round().astype(int).tolist()
    return Ragged.from_lengths(np.zeros(sum(lengths), dtype=np.int32), lengths)


def sentences_of(n_tokens: int, shape: Shape) -> Ragged:
    """About `n_tokens` tokens in sentences of SENTENCE_TOKENS, or as long as they have to be to fit into `shape`."""
    length = min(max(SENTENCE_TOKENS, -(-n_tokens // shape.n_sentences)), shape.longest, n_tokens)
    lengths = [length] * (n_tokens // length)
    if rest := n_tokens - sum(lengths):
        lengths.append(rest)
    lengths = lengths[: shape.n_sentences]
    return Ragged.from_lengths(np.zeros(sum(lengths), dtype=np.int32), lengths)


def _run_ms(engine: DeviceEngine, batch: Ragged, shape: Shape, dim: int) -> float:
    out = np.empty((len(batch), dim), dtype=np.float32)
    start_s = time.perf_counter()
    engine.launch(batch, out, engine.place(batch, shape), normalize=False).finish()
    return 1e3 * (time.perf_counter() - start_s)
