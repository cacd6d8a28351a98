"""Two results held against each other: what B changed against A, and whether that is more than noise. Pure.

Samples are ratios to the baseline of the same round, so that a machine that has become slower as a whole cancels; for
the baseline itself they are its plain times. A change is the quotient of the two runs' samples with the 99 % interval
of Hodges and Lehmann (`estimate_quotient`). It is larger than the noise where that interval leaves out 1, which is the
test of Mann and Whitney at 1 %: of a hundred comparisons one passes by chance, and the text says how many were made.
What differs from one start of a process to the next is the same in all rounds of a run, and in no interval: repeat the
runs where a small change matters.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mexma_benchmarks.result.estimates import Estimate, estimate_median, estimate_quotient
from mexma_benchmarks.result.measured import Series, series
from mexma_benchmarks.result.result import ModelResult, Result
from mexma_export.parity.figures import ParityFigures
from mexma_runtime.errors import UsageError

CONFIDENCE = 0.99
MEMORY_TOLERANCE = 0.02
"""Kernels keep different shares of the same memory for themselves."""


_Key = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing that the two runs do not share."""

    what: str
    a: str
    b: str

    def __str__(self) -> str:
        return f"{self.what}: {self.a} and {self.b}"


class UnlikeHostsError(UsageError):
    """The runs were made on machines whose times say nothing of each other; `differences` says in what they differ."""

    def __init__(self, differences: list[Difference]) -> None:
        self.differences = differences
        listed = "\n".join(f"  - {difference}" for difference in differences)
        super().__init__(
            f"these results are of unlike hosts:\n{listed}\ncompare them all the same with --allow-unlike-hosts"
        )


@dataclass(frozen=True, kw_only=True)
class SpeedChange:
    """One subject on one workload."""

    model: str
    workload: str
    subject: str
    a: Estimate
    """Times as fast as the baseline; of the baseline itself, ms."""
    b: Estimate
    is_baseline: bool
    change: Estimate
    """How many times as fast B is as A, relative to the baseline, and of the baseline itself in plain time."""

    @property
    def has_enough(self) -> bool:
        """Whether there are rounds enough for the interval asked for; if not, no difference can be told from noise."""
        return self.change.coverage >= CONFIDENCE

    @property
    def is_beyond_noise(self) -> bool:
        """Whether the interval leaves out 1."""
        return self.has_enough and not self.change.low <= 1 <= self.change.high


@dataclass(frozen=True, kw_only=True)
class FidelityChange:
    """One subject's vectors against the reference, in both."""

    model: str
    subject: str
    a: ParityFigures
    b: ParityFigures


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What two results have in common, and what they have not."""

    hosts: list[Difference]
    """Empty, but for those who insisted."""
    settings: list[Difference]
    """Versions, commits, settings, whatever else may explain a change."""
    speeds: list[SpeedChange]
    fidelities: list[FidelityChange]
    only_a: list[str]
    only_b: list[str]


def compare(a: Result, b: Result, *, allow_unlike_hosts: bool = False) -> Comparison:
    """What `b` changed against `a`.

    Raises:
        UnlikeHostsError: processor, cores, instruction sets, threads, GPUs or memory differ, and nobody insisted.
    """
    hosts = list(_host_differences(a, b))
    if hosts and not allow_unlike_hosts:
        raise UnlikeHostsError(hosts)
    in_a, in_b = _models(a), _models(b)
    common = [(in_a[key], in_b[key]) for key in in_a if key in in_b]
    speeds = [change for one, other in common for change in _speed_changes(one, other)]
    fidelities = [change for one, other in common for change in _fidelity_changes(one, other)]
    settings = [
        *_settings_differences(a, b),
        *(difference for one, other in common for difference in _subject_differences(one, other)),
    ]
    return Comparison(
        hosts=hosts,
        settings=settings,
        speeds=speeds,
        fidelities=fidelities,
        only_a=_only(in_a, in_b),
        only_b=_only(in_b, in_a),
    )


def _host_differences(a: Result, b: Result) -> Iterator[Difference]:
    one, other = a.environment.hardware, b.environment.hardware
    for what, left, right in (
        ("processor", one.processor, other.processor),
        ("physical cores", one.n_physical_cores, other.n_physical_cores),
        ("logical CPUs", one.n_logical_cpus, other.n_logical_cpus),
        ("CPU quota", one.cpu_quota, other.cpu_quota),
        ("instruction sets", " ".join(one.instruction_sets), " ".join(other.instruction_sets)),
        ("threads", a.n_threads, b.n_threads),
        ("GPUs", "; ".join(a.environment.gpus), "; ".join(b.environment.gpus)),
    ):
        if left != right:
            yield Difference(what=what, a=_shown(left), b=_shown(right))
    left, right = one.memory_total_bytes, other.memory_total_bytes
    if left != right and (left is None or right is None or abs(left - right) > MEMORY_TOLERANCE * max(left, right)):
        yield Difference(what="memory", a=_shown_size(left), b=_shown_size(right))


def _settings_differences(a: Result, b: Result) -> Iterator[Difference]:
    one, other = a.environment, b.environment
    facts: list[tuple[str, object, object]] = [
        ("commit", one.commit, other.commit),
        ("command", shlex.join(one.command), shlex.join(other.command)),
        ("Python", one.python, other.python),
        ("system", one.system, other.system),
        ("started", one.started, other.started),
    ]
    for prefix, left, right in (
        ("", one.versions, other.versions),
        ("", one.variables, other.variables),
        ("setting ", a.settings, b.settings),
    ):
        facts += [(f"{prefix}{name}", left.get(name), right.get(name)) for name in dict.fromkeys([*left, *right])]
    for what, before, after in facts:
        if before != after:
            yield Difference(what=what, a=_shown(before), b=_shown(after))


def _subject_differences(a: ModelResult, b: ModelResult) -> Iterator[Difference]:
    for what, before, now in (
        ("reference", a.reference, b.reference),
        ("corpus of the fidelity", a.fidelity_corpus, b.fidelity_corpus),
    ):
        if before != now:
            yield Difference(what=f"{a.name}, {what}", a=_shown(before), b=_shown(now))
    after = {subject.name: subject for subject in b.subjects}
    for subject in a.subjects:
        if other := after.get(subject.name):
            for what, left, right in (
                ("status", subject.status, other.status),
                ("versions", subject.versions, other.versions),
                ("options", subject.options, other.options),
                ("provider", subject.provider, other.provider),
            ):
                if left != right:
                    yield Difference(what=f"{a.name}, {subject.name}, {what}", a=_shown(left), b=_shown(right))


def _models(result: Result) -> dict[_Key, ModelResult]:
    """By weights and pooling; a model with another baseline is another, since its ratios mean something else."""
    return {(model.weights_sha256, model.pooling, model.baseline): model for model in result.models}


def _speed_changes(a: ModelResult, b: ModelResult) -> Iterator[SpeedChange]:
    after = {(one.workload, one.subject): one for one in series(b)}
    for one in series(a):
        other = after.get((one.workload, one.subject))
        if other is None:
            continue
        is_baseline = one.subject == a.baseline
        before, now = _samples(one, is_baseline), _samples(other, is_baseline)
        if before and now:
            yield SpeedChange(
                model=a.name,
                workload=f"{one.workload.kind}: {one.workload.name}",
                subject=one.subject,
                a=estimate_median(before),
                b=estimate_median(now),
                is_baseline=is_baseline,
                # Less time is more speed.
                change=estimate_quotient(*((before, now) if is_baseline else (now, before)), CONFIDENCE),
            )


def _fidelity_changes(a: ModelResult, b: ModelResult) -> Iterator[FidelityChange]:
    if a.fidelity_corpus != b.fidelity_corpus:
        return
    after = {subject.name: subject.fidelity for subject in b.subjects}
    for subject in a.subjects:
        other = after.get(subject.name)
        if subject.fidelity and other:
            yield FidelityChange(model=a.name, subject=subject.name, a=subject.fidelity.figures, b=other.figures)


def _samples(one: Series, is_baseline: bool) -> list[float]:
    return one.samples_ms if is_baseline else one.speedups


def _only(these: Mapping[_Key, ModelResult], those: Mapping[_Key, ModelResult]) -> list[str]:
    """What only the first have measured: whole models, whole subjects and workloads, single cells."""
    found = []
    for key, model in these.items():
        if key not in those:
            found.append(f"{model.name}, {model.pooling} pooling, held against {model.baseline}")
            continue
        others = series(those[key])
        cells = {(one.workload, one.subject) for one in others}
        workloads, subjects = {one.workload for one in others}, {one.subject for one in others}
        missing = []
        for one in series(model):
            what = f"{one.workload.kind}: {one.workload.name}"
            if one.subject not in subjects:
                missing.append(f"{model.name}, {one.subject}")
            elif one.workload not in workloads:
                missing.append(f"{model.name}, {what}")
            elif (one.workload, one.subject) not in cells:
                missing.append(f"{model.name}, {what}, {one.subject}")
        found += dict.fromkeys(missing)
    return found


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items()) or "none"
    return str(value) if value not in (None, "") else "none"


def _shown_size(n_bytes: int | None) -> str:
    return "unknown" if n_bytes is None else f"{n_bytes / 1e9:.1f} GB"
