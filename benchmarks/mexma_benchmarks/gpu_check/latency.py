"""The step on one sentence at a time: ids in, vector on the host."""

from __future__ import annotations

import time
from statistics import median

from mexma_benchmarks.result.checks import Check, at_least, at_most, not_measured
from mexma_benchmarks.gpu_check.run import Record
from mexma_benchmarks.gpu_check.setup import SDPA, Setup
from mexma_benchmarks.gpu_check.work import OURS, Work, random_ids, speedups
from mexma_benchmarks.result.estimates import quantile
from mexma_benchmarks.run.timing import by_name, take_turns
from mexma_runtime import Encoder
from mexma_runtime.types import Ragged

LENGTH = 32
OTHER_LENGTHS = (8, 16, 64, 128, 512)
N_WARMUPS = 10
"""Calls before those that count, each time that ours or PyTorch gets its turn."""


def measure_latency(setup: Setup, record: Record) -> None:
    """Ours and PyTorch in turns at one length; ours alone at others, and without graphs."""
    sizes, encoder = setup.sizes, setup.encoder
    sentence = _sentence(setup, LENGTH)
    work, pytorch = Work.of(sentence), setup.pytorch(SDPA)

    def theirs() -> list[float]:
        return pytorch.times_ms(work, N_WARMUPS + sizes.n_pytorch_calls)[N_WARMUPS:]

    turns = take_turns({OURS: lambda: times_ms(encoder, sentence, sizes.n_calls), SDPA: theirs})
    calls_ms = by_name(turns, sizes.n_latency_rounds)
    record.samples |= {f"{name}, {LENGTH} tokens, ms": of_rounds for name, of_rounds in calls_ms.items()}
    medians_ms = {name: [median(of_round) for of_round in of_rounds] for name, of_rounds in calls_ms.items()}
    ours_ms = [ms for of_round in calls_ms[OURS] for ms in of_round]
    p50_ms, p99_ms = quantile(ours_ms, 0.5), quantile(ours_ms, 0.99)
    one = f"one sentence of {LENGTH} tokens"
    record.checks += [
        Check(what=f"{one}: median", unit="ms", bar=at_most(1.0), measured=p50_ms, note=f"{len(ours_ms):,} calls"),
        Check(
            what=f"{one}: 99th percentile over median",
            bar=at_most(1.5),
            measured=p99_ms / p50_ms,
            note=f"{p99_ms:.3g} ms",
        ),
        Check(
            what=f"{one}: times as fast as PyTorch {setup.precision}",
            bar=at_least(8),
            measured=speedups(medians_ms)[SDPA],
            note=f"PyTorch {median(medians_ms[SDPA]):.3g} ms, {sizes.n_latency_rounds} rounds in turns",
        ),
    ]
    for length in OTHER_LENGTHS:
        _report(setup, record, encoder, length, "")
    if not setup.is_cuda:
        record.checks.append(not_measured(f"{one}, without graphs", "it needs CUDA", is_excused=True))
        return
    with Encoder.from_bundle(setup.bundle, engine=setup.engine, device=setup.device, graphs="never") as without:
        _report(setup, record, without, LENGTH, ", without graphs")


def times_ms(encoder: Encoder, sentence: Ragged, n_calls: int) -> list[float]:
    """ms of each of `n_calls`, one right after the other, after some that do not count."""
    taken_ms = []
    for _ in range(N_WARMUPS + n_calls):
        start_s = time.perf_counter()
        encoder.encode_ids(sentence)
        taken_ms.append((time.perf_counter() - start_s) * 1e3)
    return taken_ms[N_WARMUPS:]


def _report(setup: Setup, record: Record, encoder: Encoder, length: int, how: str) -> None:
    taken_ms = times_ms(encoder, _sentence(setup, length), 2 * setup.sizes.n_calls)
    record.samples[f"{OURS}, {length} tokens{how}, ms"] = taken_ms
    p99_ms = quantile(taken_ms, 0.99)
    record.checks.append(
        Check(
            what=f"one sentence of {length} tokens{how}: median",
            unit="ms",
            measured=quantile(taken_ms, 0.5),
            note=f"99th percentile {p99_ms:.3g} ms",
        )
    )


def _sentence(setup: Setup, length: int) -> Ragged:
    return random_ids([length], setup.bundle.manifest.model.vocab_size, seed=length)
