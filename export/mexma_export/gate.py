"""The parity gate: run an engine, hold its vectors against a reference, say whether it may be published."""

from __future__ import annotations

import dataclasses
import functools
import gc
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mexma_export.checkpoint import Checkpoint, load_checkpoint, weights_sha256
from mexma_export.corpus import Corpus, sample_corpus
from mexma_export.parity import InvarianceFigures, ParityFigures, WorstRow, batch_invariance, compare, worst_rows
from mexma_export.reference import Reference, load_reference
from mexma_export.sources import Source
from mexma_export.thresholds import Shortfall, check, check_invariance
from mexma_runtime import Encoder
from mexma_runtime.bundle import Bundle
from mexma_runtime.errors import (
    EngineUnavailableError,
    MissingDependencyError,
    ParityError,
    TruncationWarning,
    UsageError,
)
from mexma_runtime.hardware import describe_processor
from mexma_runtime.manifest import Certificate, EngineEntry
from mexma_runtime.terminal import Progress
from mexma_runtime.types import Dialect, Precision, Vectors

N_ALONE = 8
"""Sentences that are embedded alone as well, to see what batch-mates change."""
UNCERTIFIED_FP16 = (
    "measured on a CPU, where onnxruntime computes chains of fp16 operators in fp32 and hides overflows: "
    "a GPU has yet to judge it"
)
UNCERTIFIED_OWN = "PyTorch was not installed: held against our own fp32 graph alone"

Count = Callable[[int, int], None]
"""Called with sentences done and sentences in all."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceVectors:
    """What an engine's vectors are held against."""

    description: str
    corpus: Corpus
    vectors: Vectors
    is_pytorch: bool


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One engine, judged."""

    engine: EngineEntry
    """With its new certificate."""
    figures: ParityFigures
    invariance: InvarianceFigures
    worst: list[WorstRow]
    shortfalls: list[Shortfall]

    @property
    def certificate(self) -> Certificate:
        """What this run found, as the manifest keeps it."""
        return self.engine.certificates[-1]


def reference_for(checkpoint: Checkpoint, bundle: Bundle, corpus: Corpus, *, progress: Count) -> ReferenceVectors:
    """PyTorch's vectors where it is installed, else our own fp32 graph's; certificates say which."""
    try:
        return pytorch_reference(checkpoint, corpus, progress=progress)
    except MissingDependencyError:
        return graph_reference(bundle, corpus, progress=progress)


def open_pytorch(checkpoint: Checkpoint, *, n_threads: int | None = None) -> Reference:
    """transformers' own model of `checkpoint` in fp32; `n_threads` hold for PyTorch in the whole process."""
    settings = checkpoint.settings
    return load_reference(
        checkpoint.source.folder,
        pooling=settings.pooling_mode,
        normalize=settings.is_normalized,
        max_tokens=settings.max_tokens,
        lower_case=settings.lower_case,
        tokenizer=checkpoint.source.tokenizer.parent,
        threads=n_threads,
    )


def pytorch_reference(checkpoint: Checkpoint, corpus: Corpus, *, progress: Count) -> ReferenceVectors:
    """The corpus embedded by transformers' own model in fp32; MissingDependencyError where it is not installed."""
    with open_pytorch(checkpoint) as reference:
        texts = [checkpoint.settings.default_prompt + text for text in corpus.texts]
        vectors = reference.encode(texts, batch_size=8, sort_by_length=True, progress=progress)
        versions = reference.versions
        name = f"transformers {versions.transformers} on torch {versions.torch}, fp32, CPU, {reference.attention}"
    del reference
    gc.collect()  # the weights' mapping ends here, before an engine maps its own
    return ReferenceVectors(description=name, corpus=corpus, vectors=vectors, is_pytorch=True)


def graph_reference(bundle: Bundle, corpus: Corpus, *, progress: Count) -> ReferenceVectors:
    """The corpus embedded by the bundle's fp32 graph: what is left where PyTorch is not installed."""
    try:
        encoder = Encoder.from_bundle(bundle, precision=Precision.FP32, dialect=Dialect.PORTABLE)
    except EngineUnavailableError:
        raise UsageError(
            "nothing to judge by: PyTorch is not installed and the bundle has no portable fp32 engine. "
            "pip install 'mexma-runtime[reference]', or export --precision fp32 as well"
        ) from None
    with encoder:
        vectors = _encode(encoder, corpus.texts, progress)
        name = f"our own portable fp32 graph on {encoder.info.backend} {encoder.info.version}"
    return ReferenceVectors(description=name, corpus=corpus, vectors=vectors, is_pytorch=False)


def judge(bundle: Bundle, engine: EngineEntry, reference: ReferenceVectors, *, progress: Count) -> Verdict:
    """Run one engine of `bundle` over the reference's corpus and hold its vectors against the reference's.

    ParityError where they cannot be compared: NaN, zeros, another size.
    """
    texts = reference.corpus.texts
    few = range(0, len(texts), max(1, len(texts) // N_ALONE))
    with Encoder.from_bundle(bundle, precision=engine.precision, dialect=engine.dialect) as encoder:
        info = encoder.info
        vectors = _encode(encoder, texts, progress)
        alone = np.stack([_encode(encoder, texts[row : row + 1])[0] for row in few])
    try:
        figures, invariance = compare(vectors, reference.vectors), batch_invariance(alone, vectors[list(few)])
    except ParityError as error:
        raise ParityError(f"{engine.name}: {error}") from None
    note = None if reference.is_pytorch else UNCERTIFIED_OWN
    if engine.precision is Precision.FP16 and info.device == "cpu":
        note = UNCERTIFIED_FP16
    certificate = Certificate(
        reference=reference.description,
        corpus=reference.corpus.name,
        corpus_sha256=reference.corpus.sha256,
        backend=f"{info.backend} {info.version}",
        provider=info.providers[0],
        processor=describe_processor(),
        certified=note is None,
        note=note,
        figures={
            **dataclasses.asdict(figures),
            "batch_invariance_cosine_min": invariance.cosine_min,
            "batch_invariance_max_abs_difference": invariance.max_abs_difference,
        },
    )
    return Verdict(
        engine=dataclasses.replace(engine, certificates=[certificate]),
        figures=figures,
        invariance=invariance,
        worst=worst_rows(vectors, reference.vectors),
        shortfalls=check(figures, engine.precision) + check_invariance(invariance),
    )


def compare_bundle(
    folder: Path,
    source: Source,
    *,
    corpus: Corpus | None,
    precisions: list[Precision] | None,
    progress: Progress,
) -> tuple[list[Verdict], ReferenceVectors]:
    """Judge the published engines of a bundle by PyTorch; `source` must be the checkpoint that they were made from."""
    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    engines = [e for e in manifest.engines if not precisions or e.precision in precisions]
    if not engines:
        there = ", ".join(engine.name for engine in manifest.engines)
        raise EngineUnavailableError(f"{folder}: no engine of {', '.join(precisions or [])}; it has {there}")
    checkpoint = load_checkpoint(source, pooling=manifest.pooling_mode)
    digest = weights_sha256(checkpoint)
    if digest != manifest.model.weights_sha256:
        raise UsageError(
            f"{folder} was made from {manifest.model.id} with weights {manifest.model.weights_sha256}, and "
            f"{source.model_id} has {digest}: compare it with its own checkpoint"
        )
    reference = pytorch_reference(
        checkpoint, corpus or sample_corpus(), progress=functools.partial(progress, "reference vectors")
    )
    verdicts = []
    for engine in engines:
        what = f"judging {engine.name}"
        verdicts.append(judge(bundle, engine, reference, progress=functools.partial(progress, what)))
    return verdicts, reference


def _encode(encoder: Encoder, texts: Sequence[str], progress: Count | None = None) -> Vectors:
    vectors = np.empty((len(texts), encoder.info.dim), dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # the reference truncates the same
        for row, vector in enumerate(encoder.encode_iter(texts)):
            vectors[row] = vector
            if progress:
                progress(row + 1, len(vectors))
    return vectors
