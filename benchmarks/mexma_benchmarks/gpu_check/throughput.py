"""The steps on many sentences: lengths as of real ones, all of one length, and text in."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from mexma_benchmarks.result.checks import Check, at_least, not_measured
from mexma_benchmarks.gpu_check.pytorch import PyTorchError, PyTorchProcess
from mexma_benchmarks.gpu_check.run import Record
from mexma_benchmarks.gpu_check.setup import COMPILED, Setup
from mexma_benchmarks.gpu_check.work import OURS, Work, drawn_ids, flop_a_token, random_ids, repeated, speedups
from mexma_benchmarks.run.timing import by_name, rounds, take_turns
from mexma_export.corpus.corpus import sample_corpus
from mexma_runtime.types import Ragged

LENGTH = 128
WARMUP_S = 60.0
"""torch.compile may take so long; then it is left out."""
N_PRODUCTS = 10


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Ours and PyTorch on the same ids, in turns."""

    n_tokens: int
    samples_ms: dict[str, list[float]]
    """OURS and each way to run PyTorch -> ms of each round."""
    left_out: dict[str, str]
    """Ways that could not be measured, and why."""

    @property
    def tokens_per_s(self) -> float:
        """Of ours, by the median round."""
        return self.n_tokens / median(self.samples_ms[OURS]) * 1e3

    def best(self) -> tuple[str, float]:
        """The fastest way to run PyTorch, and how many times as fast as it ours is."""
        of_all = speedups(self.samples_ms)
        name = min(of_all, key=of_all.__getitem__)
        return name, of_all[name]

    @property
    def note(self) -> str:
        """Which that is, and which were left out."""
        rate = self.n_tokens / median(self.samples_ms[self.best()[0]]) * 1e3
        left_out = [f"{name} was not measured: {reason}" for name, reason in self.left_out.items()]
        return "; ".join([f"{self.best()[0]}: {rate:,.0f} tokens/s", *left_out])


def measure_drawn(setup: Setup, record: Record) -> None:
    """Sentences as long as real ones."""
    compared = _compare(setup, Work.of(drawn_ids(setup.sizes.n_sentences, _vocab_size(setup))))
    _keep(record, compared, f"{setup.sizes.n_sentences:,} sentences of drawn lengths", least=1.3)


def measure_alike(setup: Setup, record: Record) -> None:
    """Sentences of one length: nothing is padded anywhere, so the card's own rate is the measure."""
    sizes = setup.sizes
    lengths = [LENGTH] * (sizes.n_alike * sizes.n_alike_batches)
    work = Work.of(random_ids(lengths, _vocab_size(setup)), max_batch_tokens=sizes.n_alike * LENGTH)
    compared = _compare(setup, work)
    _keep(record, compared, f"batches of {sizes.n_alike} sentences of {LENGTH} tokens", least=1.0)
    what = "the same: share of the card's own rate of fp16 products"
    if not setup.is_cuda:
        record.checks.append(not_measured(what, "it needs CUDA", is_excused=True))
        return
    flop_per_s = product_flop_per_s(setup.device, sizes.matrix_size)
    record.samples["products_flop_per_s"] = flop_per_s
    flop = flop_a_token(setup.checkpoint.config)
    card = median(flop_per_s)
    record.checks.append(
        Check(
            what=what,
            bar=at_least(0.5),
            measured=compared.tokens_per_s * flop / card,
            note=f"{card / 1e12:.0f} TFLOP/s by torch.mm; {flop / 1e6:.0f} MFLOP a token: all linear layers, the last "
            "layer's whole, without attention's products",
        )
    )


def measure_texts(setup: Setup, record: Record) -> None:
    """Real text in, against the ids of the same text in: what tokenization costs that runs beside the device."""
    corpus, n, encoder = sample_corpus().texts, setup.sizes.n_sentences, setup.encoder
    texts = [corpus[row % len(corpus)] for row in range(n)]
    ragged = repeated(encoder.tokenize(corpus).ragged, n)
    calls = {"ids": lambda: encoder.encode_ids(ragged), "texts": lambda: encoder.encode(texts)}
    samples_ms = by_name(rounds(calls), setup.sizes.n_rounds)
    record.samples |= {f"{name}_ms": taken_ms for name, taken_ms in samples_ms.items()}
    shares = [ids_ms / texts_ms for ids_ms, texts_ms in zip(samples_ms["ids"], samples_ms["texts"], strict=True)]
    record.checks.append(
        Check(
            what=f"{n:,} texts in: rate over that of their ids",
            bar=at_least(0.9),
            measured=median(shares),
            note=f"{n / median(samples_ms['texts']) * 1e3:,.0f} texts/s of {ragged.ids.size / n:.1f} tokens",
        )
    )


def product_flop_per_s(device: str, n: int) -> list[float]:
    """FLOP/s of fp16 products of two random matrices `(n, n)` by torch.mm, each timed by the device's own clock."""
    import torch

    a, b = (torch.randn(n, n, dtype=torch.float16, device=device) for _ in range(2))
    rates = []
    for _ in range(3):
        torch.mm(a, b)
    make_event: Any = torch.cuda.Event
    for _ in range(N_PRODUCTS):
        start, end = (make_event(enable_timing=True) for _ in range(2))
        start.record()
        torch.mm(a, b)
        end.record()
        torch.cuda.synchronize(device)
        rates.append(2 * n**3 / (start.elapsed_time(end) / 1e3))
    del a, b
    torch.cuda.empty_cache()
    return rates


def _compare(setup: Setup, work: Work) -> Compared:
    calls: dict[str, Callable[[], float]] = {OURS: functools.partial(_ours_ms, setup, work.ragged)}
    left_out = {}
    calls[OURS]()
    processes = {name: setup.pytorch(name) for name in setup.baselines}  # they load side by side
    for name, pytorch in processes.items():
        try:
            pytorch.wait_ready()
            pytorch.times_ms(work, limit_s=WARMUP_S)
            calls[name] = functools.partial(_theirs_ms, pytorch, work)
        except PyTorchError as error:
            left_out[name] = f"warm-up: {error}" if name == COMPILED else str(error)
    if len(calls) == 1:
        raise PyTorchError(f"no way to run PyTorch to compare with: {left_out}")
    samples_ms = by_name(take_turns(calls), setup.sizes.n_rounds)
    return Compared(n_tokens=work.n_tokens, samples_ms=samples_ms, left_out=left_out)


def _keep(record: Record, compared: Compared, what: str, *, least: float) -> None:
    record.samples |= {"n_tokens": compared.n_tokens, "left_out": compared.left_out}
    record.samples |= {f"{name}, ms": taken_ms for name, taken_ms in compared.samples_ms.items()}
    ratio = compared.best()[1]
    best = f"{what}: times as fast as the best of PyTorch"
    record.checks += [
        Check(what=f"{what}: rate", unit="tokens/s", measured=compared.tokens_per_s),
        Check(what=best, bar=at_least(least), measured=ratio, note=compared.note),
    ]


def _ours_ms(setup: Setup, ragged: Ragged) -> float:
    start_s = time.perf_counter()
    setup.encoder.encode_ids(ragged)
    return (time.perf_counter() - start_s) * 1e3


def _theirs_ms(pytorch: PyTorchProcess, work: Work) -> float:
    return pytorch.times_ms(work)[0]


def _vocab_size(setup: Setup) -> int:
    return setup.bundle.manifest.model.vocab_size
