"""What gpu-check lets the suite measure: the subjects, and how much of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mexma_benchmarks.adapters.protocol import Turn
from mexma_benchmarks.run.sizes import SIZES, Effort, RunSizes
from mexma_benchmarks.run.subjects import GRAPH_LENGTH, Subject, baseline_subjects, flash_subjects

IDS, TEXTS, VECTORS = frozenset({"ids"}), frozenset({"texts"}), frozenset({"fidelity"})
FLASH, BY_LENGTH, WITHOUT_GRAPHS = ", flash attention", ", attention by length", ", without graphs"


@dataclass(frozen=True, kw_only=True)
class Lineup:
    """Subjects on one device; those of a group are in memory together, the baseline and `ours` among them."""

    baseline: Subject
    """transformers' own model."""
    ours: Subject
    """The engine that is taken by default."""
    first: tuple[Subject, ...]
    """Other ways to run ours and PyTorch, quick to start."""
    late: tuple[Subject, ...] = ()
    """What may take minutes to start, and what few have installed."""


def lineup_on(device: str) -> Lineup:
    """On a CPU, where gpu-check only shows that it runs: PyTorch and ours."""
    ways = {subject.name: dataclasses.replace(subject, measured=IDS) for subject in baseline_subjects(device)}
    if device == "cpu":
        ours = _ours("fused.fp32", "", IDS | VECTORS | TEXTS)
        return Lineup(baseline=ways["PyTorch fp32"], ours=ours, first=(_ours("portable.fp32", "", VECTORS),))
    return Lineup(
        baseline=ways["PyTorch fp16"],
        ours=_ours("packed.fp16", "", IDS | VECTORS | TEXTS),
        first=(
            ways["PyTorch fp16, unpadded"],
            dataclasses.replace(ways["PyTorch fp16, packed"], measured=IDS | VECTORS),
            ways["PyTorch fp16, packed, graph"],
            _ours("packed.fp16", FLASH, IDS | VECTORS, attention="flash"),
            _ours("packed.fp16", BY_LENGTH, IDS | VECTORS, attention="auto"),
            _ours("packed.fp16", WITHOUT_GRAPHS, IDS, graphs="never"),
            _ours("fused.fp16", "", VECTORS),
        ),
        late=(
            ways["PyTorch fp16, compiled"],
            *(dataclasses.replace(subject, measured=IDS) for subject in flash_subjects(device)),
        ),
    )


def _ours(engine: str, how: str, measured: frozenset[str], **options: str) -> Subject:
    known = {"engine": engine, "precision": engine.partition(".")[2], "backend": "onnxruntime"}
    name = f"mexma {engine}{how}"
    return Subject(name=name, role="engine", adapter="mexma", options=known | options, measured=measured)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Counts of one run."""

    run: RunSizes
    """One sentence of GRAPH_LENGTH, the `bulk`, one sentence of other lengths; texts and their ids."""
    n_batch_mates: int
    """Sentences that some are embedded among, to see whether it matters."""
    n_soak_batches: int
    """The first tenth of them may take memory."""

    @property
    def bulk(self) -> tuple[tuple[int, int], ...]:
        """Sentences x tokens: many short ones, and fewer long ones of as many tokens."""
        return self.run.grid[1:3]

    @property
    def of_late(self) -> RunSizes:
        """Of the late group: one length of one sentence, and rates."""
        return dataclasses.replace(self.run, grid=self.run.grid[:3])

    @property
    def of_vectors(self) -> RunSizes:
        """Where vectors alone are measured."""
        return dataclasses.replace(self.run, grid=(), n_texts=1, with_their_ids=False)


FULL = Sizes(
    run=dataclasses.replace(
        SIZES[Effort.QUICK],
        grid=((1, GRAPH_LENGTH), (512, 128), (128, 512), (1, 8), (1, 16), (1, 64), (1, 128), (1, 512)),
        n_texts=32_768,
        with_their_ids=True,
        one_sentence=Turn(n_calls=200, n_warmups=10, limit_s=0.3),
        n_judged=10_000,
        n_judged_standin=10_000,
        share_s=8,
        max_rounds=10,
    ),
    n_batch_mates=4096,
    n_soak_batches=10_000,
)
QUICK = Sizes(
    run=dataclasses.replace(
        SIZES[Effort.SMOKE],
        grid=((1, GRAPH_LENGTH), (8, 128), (2, 512), (1, 8)),
        n_texts=64,
        with_their_ids=True,
        one_sentence=Turn(n_calls=5, n_warmups=1),
    ),
    n_batch_mates=64,
    n_soak_batches=40,
)
