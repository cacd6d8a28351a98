"""The step on attention's two kernels: which is the faster depends on the texts, so there is no bar."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median

from mexma_benchmarks.result.checks import Check
from mexma_benchmarks.gpu_check.run import Record
from mexma_benchmarks.gpu_check.setup import Setup
from mexma_benchmarks.gpu_check.sizes import Sizes
from mexma_benchmarks.gpu_check.work import drawn_ids, random_ids
from mexma_benchmarks.result.estimates import ratios
from mexma_benchmarks.run.timing import by_name, rounds
from mexma_runtime import Encoder
from mexma_runtime.backends import Attention
from mexma_runtime.types import Ragged

LENGTHS = (128, 512)


def compare_kernels(setup: Setup, record: Record) -> None:
    """The encoder of all other steps, and one with the other kernel."""
    with Encoder.from_bundle(
        setup.bundle, engine=setup.engine, device=setup.device, attention=Attention.FLASH
    ) as other:
        compare(setup.encoder, other, setup.sizes, setup.bundle.manifest.model.vocab_size, record)


def compare(efficient: Encoder, flash: Encoder, sizes: Sizes, vocab_size: int, record: Record) -> None:
    """Both in turns, on sentences of several lengths and on one alone."""
    encoders = {"efficient": efficient, "flash": flash}
    for what, ragged, n_calls in _work(sizes, vocab_size):
        calls = {name: partial(_embed, encoder, ragged, n_calls) for name, encoder in encoders.items()}
        samples_ms = {
            name: [ms / n_calls for ms in of_rounds]
            for name, of_rounds in by_name(rounds(calls), sizes.n_rounds).items()
        }
        record.samples[f"{what}, ms"] = samples_ms
        record.checks.append(
            Check(
                what=f"{what}: flash attention, times as fast as efficient",
                measured=median(ratios(samples_ms["efficient"], samples_ms["flash"])),
                note="; ".join(
                    f"{name} {median(ms):.3g} ms, {ragged.ids.size / median(ms) * 1e3:,.0f} tokens/s"
                    for name, ms in samples_ms.items()
                ),
            )
        )


def _embed(encoder: Encoder, ragged: Ragged, n_calls: int) -> None:
    for _ in range(n_calls):
        encoder.encode_ids(ragged)


def _work(sizes: Sizes, vocab_size: int) -> Iterator[tuple[str, Ragged, int]]:
    """What it is, the ids, and how often they are embedded in one turn."""
    yield "drawn lengths", drawn_ids(sizes.n_sentences, vocab_size), 1
    for length in LENGTHS:
        n = max(1, sizes.n_alike * sizes.n_alike_batches * LENGTHS[0] // length)
        yield f"{n} sentences of {length} tokens", random_ids([length] * n, vocab_size), 1
    yield "one sentence of 32 tokens", random_ids([32], vocab_size), sizes.n_calls
