"""A loaded checkpoint, and verdicts on made-up vectors for the tests of what is shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mexma_export.checkpoint.checkpoint import Checkpoint, load_checkpoint
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.corpus.corpus import Corpus
from mexma_export.parity.breakdown import judge_vectors
from mexma_export.parity.figures import InvarianceFigures
from mexma_export.parity.gate import ReferenceVectors, Verdict
from mexma_export.parity.invariance import BatchInvariance
from mexma_export.parity.mining import Bitext, MiningCorpus, compare_mining
from mexma_export.parity.sts import StsFigures, StsPairs
from mexma_export.parity.thresholds import check
from mexma_runtime.bundle.manifest import Certificate, EngineEntry
from mexma_runtime.types import Dialect, Precision

MakeVerdict = Callable[..., Verdict]


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    """The stand-in `tiny`."""
    return load_checkpoint(resolve_source(str(tiny_checkpoint)))


@pytest.fixture(scope="session")
def parity_reference() -> ReferenceVectors:
    """Four sentences that look like markup, two languages, and both tasks."""
    corpus = Corpus(
        name="[bold]:key:.txt",
        texts=("plain", "[red]not markup[/red] :smile: \\[x]", "a\tb", '"quoted" \u4e00'),
        languages=("en", "en", "[b]", "en"),
    )
    lines = tuple(str(number) for number in range(200))
    mining = MiningCorpus(
        name="[tatoeba]",
        bitexts=tuple(Bitext(name=name, source=lines, target=lines) for name in ("deu-eng", "zho-CN-eng")),
    )
    return ReferenceVectors(
        description="PyTorch :100:",
        corpus=corpus,
        vectors=np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32),
        is_pytorch=True,
        mining=mining,
        mining_errors=[195, 0],
        sts=StsPairs(name="[sts].tsv", scores=(1, 2), first=("a", "b"), second=("c", "d")),
        sts_correlation=0.8125,
    )


@pytest.fixture(scope="session")
def make_verdict(parity_reference: ReferenceVectors) -> MakeVerdict:
    """`make_verdict(engine, noise, note=None)`: the engine `DIALECT.PRECISION`, its vectors off by noise."""

    def make(name: str, noise: float, *, note: str | None = None) -> Verdict:
        reference = parity_reference
        assert reference.mining
        assert reference.mining_errors
        random = np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)
        breakdown = judge_vectors(
            reference.vectors + np.float32(noise) * random,
            reference.vectors,
            lengths=[3, 20, 4, 5],
            languages=reference.corpus.languages,
        )
        certificate = Certificate(
            reference=reference.description,
            corpus=reference.corpus.name,
            corpus_sha256=reference.corpus.sha256,
            backend="onnxruntime 1",
            provider="CPU",
            processor="[x]",
            certified=note is None,
            note=note,
            figures={},
        )
        dialect, precision = name.split(".")
        engine = EngineEntry(
            name=name,
            dialect=Dialect(dialect),
            precision=Precision(precision),
            recipe=None,
            activation=None,
            file="",
            weights=[],
            inputs=[],
            output="",
            requires={},
            space="",
            certificates=[certificate],
        )
        ways = [InvarianceFigures(cosine_min=cosine, max_abs_difference=0.0) for cosine in (1.0, 0.75, 0.5)]
        return Verdict(
            engine=engine,
            breakdown=breakdown,
            invariance=BatchInvariance(alone=ways[0], mixed=ways[1], shuffled=ways[2]),
            shortfalls=check(breakdown.overall, engine.precision),
            mining=compare_mining(reference.mining, [200, 3], reference.mining_errors),
            sts=StsFigures(n_pairs=2, engine=0.75, reference=reference.sts_correlation),
        )

    return make


@pytest.fixture(scope="session")
def verdicts(make_verdict: MakeVerdict) -> list[Verdict]:
    """A good one, an uncertified one and a bad one."""
    return [
        make_verdict("fused.fp32", 0),
        make_verdict("fused.fp16", 0, note="no [GPU] :x: yet"),
        make_verdict("portable.fp16", 0.5),
    ]
