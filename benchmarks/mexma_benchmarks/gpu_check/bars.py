"""The bars of speed and of vectors, over what the suite has measured of one checkpoint. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from mexma_benchmarks.gpu_check.lineup import BY_LENGTH, FLASH, WITHOUT_GRAPHS, Lineup, Sizes
from mexma_benchmarks.result.checks import Bar, Check, at_least, at_most, not_measured
from mexma_benchmarks.result.estimates import quantile
from mexma_benchmarks.result.measured import times_as_fast
from mexma_benchmarks.result.result import ModelResult, Timing
from mexma_benchmarks.run.subjects import GRAPH_LENGTH, Subject
from mexma_export.checkpoint.config import ModelConfig

MIN_COSINE = 0.9999
MIN_COSINE_MINILM = 0.9998
ONE, DRAWN, SHORT, LONG = "one sentence", "drawn lengths", "short sentences", "long sentences"
Bars = Mapping[str, Bar | None]
"""Work -> the bar; None: reported."""
_TRANSFORMERS: Bars = {DRAWN: at_least(1.3), SHORT: at_least(1.0)}
TIMES_AS_FAST: Mapping[str, Bars] = {
    "PyTorch fp32": {ONE: at_least(8), **_TRANSFORMERS},
    "PyTorch fp16": {ONE: at_least(8), **_TRANSFORMERS},
    "PyTorch fp16, unpadded": _TRANSFORMERS,
    "PyTorch fp16, compiled": _TRANSFORMERS,
    "PyTorch fp16, packed": {DRAWN: at_least(1.1), SHORT: at_least(1.0), LONG: at_least(1.0)},
    "PyTorch fp16, packed, graph": {ONE: at_least(1.0)},
    f"mexma packed.fp16{FLASH}": dict.fromkeys((ONE, DRAWN, SHORT, LONG)),
    f"mexma packed.fp16{BY_LENGTH}": {ONE: None, DRAWN: at_most(1.03), SHORT: None, LONG: None},
    f"mexma packed.fp16{WITHOUT_GRAPHS}": {ONE: None},
}
"""Subject -> how many times as fast ours has to be."""
PEERS: Bars = dict.fromkeys((ONE, SHORT, LONG))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One checkpoint's samples, and who is who."""

    model: ModelResult
    lineup: Lineup
    sizes: Sizes

    def shape(self, work: str) -> tuple[int | None, int | None]:
        """Sentences and tokens of each; None where they are of drawn lengths."""
        short, long = self.sizes.bulk
        return {ONE: (1, GRAPH_LENGTH), DRAWN: (None, None), SHORT: short, LONG: long}[work]

    def timings(self, shape: tuple[int | None, int | None], kind: str = "ids") -> list[Timing]:
        """Of sentences of that shape, in all heats."""
        works = ((timing, timing.workload) for timing in self.model.timings)
        return [timing for timing, work in works if (work.kind, work.batch, work.length) == (kind, *shape)]


def described(shape: tuple[int | None, int | None]) -> str:
    """`one sentence of 32 tokens`."""
    n, length = shape
    return "drawn lengths" if n is None else f"{'one sentence' if n == 1 else f'{n} sentences'} of {length} tokens"


def latency_bars(measured: Measured) -> Iterator[Check]:
    """One sentence at a time, by each call of ours."""
    for shape in measured.sizes.run.grid:
        if shape[0] != 1:
            continue
        timings, ours = measured.timings(shape), measured.lineup.ours
        calls_ms = [ms for timing in timings for turn in timing.calls_ms.get(ours.name, []) for ms in turn]
        what, is_judged = described(shape), shape == measured.shape(ONE)
        if not calls_ms:
            yield _missing(f"{what}: median", measured.model, timings, ours)
            continue
        p50_ms, p99_ms = quantile(calls_ms, 0.5), quantile(calls_ms, 0.99)
        note, bar = f"99th percentile {p99_ms:.3g} ms of {len(calls_ms):,} calls", at_most(1.0) if is_judged else None
        yield Check(what=f"{what}: median", unit="ms", bar=bar, measured=p50_ms, note=note)
        if is_judged:
            yield Check(what=f"{what}: 99th percentile over median", bar=at_most(1.5), measured=p99_ms / p50_ms)


def rate_bars(measured: Measured) -> Iterator[Check]:
    """Tokens a second of ours, and texts in against the ids of the same texts."""
    model, ours = measured.model, measured.lineup.ours
    for work in (DRAWN, SHORT, LONG):
        timings = measured.timings(measured.shape(work))
        what = f"{described(measured.shape(work))}: rate"
        if samples_ms := _samples_ms(timings, ours):
            yield Check(
                what=what, unit="tokens/s", measured=_tokens_per_s(timings, samples_ms), note=timings[0].workload.name
            )
        else:
            yield _missing(what, model, timings, ours)
    texts, ids = (measured.timings((None, None), kind) for kind in ("texts", "ids"))
    texts_ms, ids_ms = _samples_ms(texts, ours), _samples_ms(ids, ours)
    what = "texts in: rate over that of their ids"
    if texts_ms and ids_ms:
        note = f"{texts[0].workload.n_sentences / median(texts_ms) * 1e3:,.0f} texts/s, {texts[0].workload.name}"
        yield Check(what=what, bar=at_least(0.9), measured=median(ids_ms) / median(texts_ms), note=note)
    else:
        yield _missing(what, model, texts, ours)


def speed_bars(measured: Measured, others: Iterable[Subject]) -> Iterator[Check]:
    """Ours against each of `others` whose ids are timed."""
    for other in others:
        if "ids" in other.measured and other is not measured.lineup.ours:
            for work, bar in TIMES_AS_FAST.get(other.name, PEERS).items():
                yield speed_bar(measured, work, measured.lineup.ours, other, bar)


def speed_bar(measured: Measured, work: str, one: Subject, other: Subject, bar: Bar | None) -> Check:
    """How many times as fast one is as the other: the median of the rounds' ratios."""
    timings = measured.timings(measured.shape(work))
    what = f"{described(measured.shape(work))}: {one.name}, times as fast as {other.name}"
    found = times_as_fast(timings, one.name, other.name)
    if not found:
        return _missing(what, measured.model, timings, other, one)
    its_ms = _samples_ms(timings, other)
    note = f"{other.name}: {median(its_ms):.3g} ms, {_tokens_per_s(timings, its_ms):,.0f} tokens/s; {len(found)} rounds"
    return Check(what=what, bar=bar, measured=median(found), note=note)


def by_length_bars(measured: Measured) -> Iterator[Check]:
    """Attention by length is as fast as flash where that is the faster; TIMES_AS_FAST has the rest."""
    ways = {subject.name.removeprefix(measured.lineup.ours.name): subject for subject in measured.lineup.first}
    if BY_LENGTH in ways:
        yield speed_bar(measured, LONG, ways[BY_LENGTH], ways[FLASH], at_least(0.97))


def share_bar(measured: Measured, flop_per_s: float, config: ModelConfig) -> Check:
    """The share of the card's own rate of fp16 products, where nothing is padded anywhere."""
    timings, ours = measured.timings(measured.shape(SHORT)), measured.lineup.ours
    what = f"{described(measured.shape(SHORT))}: share of the card's own rate of fp16 products"
    if not (samples_ms := _samples_ms(timings, ours)):
        return _missing(what, measured.model, timings, ours)
    flop = flop_a_token(config)
    note = (
        f"{flop_per_s / 1e12:.0f} TFLOP/s by torch.mm; {flop / 1e6:.0f} MFLOP a token: all linear layers, the last "
        "layer's whole, without attention's products"
    )
    return Check(
        what=what, bar=at_least(0.5), measured=_tokens_per_s(timings, samples_ms) * flop / flop_per_s, note=note
    )


def flop_a_token(config: ModelConfig) -> float:
    """2 for each multiplication of all linear layers. The last layer counts whole, attention's products do not."""
    hidden, ffn = config.hidden_size, config.ffn_size
    return 2.0 * config.n_layers * (4 * hidden * hidden + 2 * hidden * ffn)


def vector_bars(
    model: ModelResult, subjects: Iterable[Subject], *, least: float, mean: float | None = None
) -> Iterator[Check]:
    """The least cosine to PyTorch in fp32, or the mean where it has the bar, and what batch-mates change.

    Of PyTorch's own ways it is reported.
    """
    for subject in subjects:
        if "fidelity" not in subject.measured:
            continue
        what = f"{model.name}, {subject.name}: {'mean' if mean else 'least'} cosine to PyTorch fp32"
        found = next((row.fidelity for row in model.subjects if row.name == subject.name), None)
        if found is None:
            yield _missing(what, model, [], subject)
            continue
        figures, is_ours = found.figures, subject.role == "engine"
        yield Check(
            what=what,
            bar=at_least(mean or least) if is_ours else None,
            measured=figures.cosine_mean if mean else figures.cosine_min,
            note=f"{figures.n_sentences} sentences; least {figures.cosine_min:.6f}, mean {figures.cosine_mean:.6f}",
        )
        if is_ours and not mean and found.invariance:
            what = f"{model.name}, {subject.name}: least cosine of a sentence alone and among others"
            yield Check(what=what, bar=at_least(MIN_COSINE), measured=found.invariance.cosine_min)


def _samples_ms(timings: Sequence[Timing], subject: Subject) -> list[float]:
    return [ms for timing in timings for ms in timing.samples_ms.get(subject.name, [])]


def _tokens_per_s(timings: Sequence[Timing], samples_ms: Sequence[float]) -> float:
    return timings[0].workload.n_tokens / median(samples_ms) * 1e3


def _missing(what: str, model: ModelResult, timings: Sequence[Timing], *subjects: Subject) -> Check:
    """A row that says why there is no number; excused where something is not installed."""
    rows = {row.name: row for row in model.subjects}
    for row in (rows[subject.name] for subject in subjects if subject.name in rows):
        reasons = [row.reason, *(timing.not_offered.get(row.name) for timing in timings)]
        if reason := next(filter(None, reasons), None):
            return not_measured(what, f"{row.name}: {reason}", is_excused=row.status == "unavailable")
    return not_measured(what, "it was not reached", is_excused=False)
