"""Measuring, on the device itself, up to how many tokens captured graphs are faster than runs without."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from mexma_runtime.backends.gpu.engine import DeviceEngine
from mexma_runtime.backends.gpu.layouts import Shape
from mexma_runtime.bundle.tuning import Sample
from mexma_runtime.types import Ragged

N_ROUNDS = 20
SENTENCE_TOKENS = 16
"""Tokens of the sentences that are measured, but for the last of a batch."""


def measure_buckets(
    engine: DeviceEngine, *, dim: int, n_rounds: int = N_ROUNDS, progress: Callable[[int, int], None] | None = None
) -> list[Sample]:
    """Each bucket of `engine` full, in turns with the least batch that it would be taken for, run without a graph."""
    shapes = engine.buckets
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
