"""The parity gate: run an engine, hold its vectors against a reference, say whether it may be published."""

from __future__ import annotations

import dataclasses
import functools
import gc
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mexma_export.checkpoint.checkpoint import Checkpoint
from mexma_export.corpus.corpus import Corpus, Embed, gate_corpus
from mexma_export.parity.breakdown import Breakdown, judge_vectors
from mexma_export.parity.figures import ParityFigures
from mexma_export.parity.invariance import BatchInvariance, measure_invariance, n_texts_again
from mexma_export.parity.mining import MiningCorpus, MiningFigures, compare_mining, measure_mining
from mexma_export.parity.reference import Reference, load_reference
from mexma_export.parity.sts import StsFigures, StsPairs, measure_sts
from mexma_export.parity.thresholds import Shortfall, check, check_invariance
from mexma_runtime import Encoder
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import Certificate, EngineEntry
from mexma_runtime.errors import (
    EngineUnavailableError,
    MissingDependencyError,
    ParityError,
    TruncationWarning,
    UsageError,
)
from mexma_runtime.types import Dialect, Precision, Ragged, Vectors

UNCERTIFIED_FP16 = (
    "measured on a CPU, where onnxruntime computes chains of fp16 operators in fp32 and hides overflows: "
    "a GPU has yet to judge it"
)
UNCERTIFIED_OWN = "PyTorch was not installed: held against our own fp32 graph alone"

PROBES = (
    "two  spaces",
    " in front",
    "at the end ",
    "tab\tand\nnew line",
    "\u3000wide\u3000space",
    "no\u00a0break",
    "",
    " ",
    "e\u0301 \u00e9 \ufb01 \uff26\uff35\uff2c\uff2c",
    "soft\u00adhyphen",
    "zero\u200bwidth",
    "\ufeffmark",
    "a\u0000b",
    "<mask> and <s> </s> <pad> <unk>",
    "[MASK] and [CLS] [SEP] [PAD] [UNK]",
    "a <mask>b [MASK]c",
    "Upper CASE",
)
"""Texts of which tokenizers that differ make different ids: their tokens alone are compared."""

Count = Callable[[int, int], None]
"""Called with sentences done and sentences in all."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceVectors:
    """What an engine is held against: the reference's vectors of a corpus, and how it does at tasks."""

    description: str
    corpus: Corpus
    vectors: Vectors
    is_pytorch: bool
    ids: list[list[int]] | None = None
    """Of the corpus and of `PROBES`, by the reference's own tokenizer; None where it has none of its own."""
    mining: MiningCorpus | None = None
    mining_errors: list[int] | None = None
    """See `measure_mining`; None where there is no `mining`."""
    sts: StsPairs | None = None
    sts_correlation: float | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One engine, judged."""

    engine: EngineEntry
    """With its new certificate."""
    breakdown: Breakdown
    invariance: BatchInvariance
    shortfalls: list[Shortfall]
    mining: MiningFigures | None = None
    sts: StsFigures | None = None

    @property
    def figures(self) -> ParityFigures:
        """Of the whole corpus."""
        return self.breakdown.overall

    @property
    def certificate(self) -> Certificate:
        """What this run found, as the manifest keeps it."""
        return self.engine.certificates[-1]


def reference_for(checkpoint: Checkpoint, bundle: Bundle, *, progress: Count) -> ReferenceVectors:
    """The gate's corpus by PyTorch where it is installed, else by our own fp32 graph; certificates say which."""
    corpus = gate_corpus()
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
        tokenizer_options=settings.tokenizer_options,
        threads=n_threads,
    )


def pytorch_reference(
    checkpoint: Checkpoint,
    corpus: Corpus,
    *,
    mining: MiningCorpus | None = None,
    sts: StsPairs | None = None,
    progress: Count,
) -> ReferenceVectors:
    """Corpus and tasks embedded by transformers' own model in fp32; MissingDependencyError where it is not there."""
    with open_pytorch(checkpoint) as reference:
        encode = functools.partial(_encode_by_reference, reference, checkpoint.settings.default_prompt)
        embed = _counted(encode, len(corpus.texts) + _n_task_texts(mining, sts), progress)
        ids = reference.tokenize([checkpoint.settings.default_prompt + text for text in (*corpus.texts, *PROBES)])
        vectors = embed(corpus.texts)
        mining_errors = measure_mining(mining, embed) if mining else None
        sts_correlation = measure_sts(sts, embed) if sts else None
        versions = reference.versions
        name = f"transformers {versions.transformers} on torch {versions.torch}, fp32, CPU, {reference.attention}"
    del reference, encode, embed
    gc.collect()  # the weights' mapping ends here, before an engine maps its own
    return ReferenceVectors(
        description=name,
        corpus=corpus,
        vectors=vectors,
        is_pytorch=True,
        ids=ids,
        mining=mining,
        mining_errors=mining_errors,
        sts=sts,
        sts_correlation=sts_correlation,
    )


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


def judge(
    bundle: Bundle,
    engine: EngineEntry,
    reference: ReferenceVectors,
    *,
    device: str = "cpu",
    backend: str | None = None,
    progress: Count,
) -> Verdict:
    """Run one engine of `bundle` over the reference's corpus and tasks, and hold what it gives against the reference's.

    ParityError where vectors cannot be compared: NaN, zeros, another size.
    """
    corpus, mining, sts = reference.corpus, reference.mining, reference.sts
    mining_figures = sts_figures = None
    n_corpus = len(corpus.texts) + n_texts_again(len(corpus.texts))
    with Encoder.from_bundle(bundle, engine=engine.name, device=device, backend=backend) as encoder:
        info = encoder.info
        embed = _counted(functools.partial(_encode, encoder), n_corpus + _n_task_texts(mining, sts), progress)
        ids = encoder.tokenize((*corpus.texts, *PROBES)).ragged
        lengths = ids.lengths[: len(corpus.texts)]
        try:
            _require_same_ids(ids, reference)
            vectors = embed(corpus.texts)
            breakdown = judge_vectors(vectors, reference.vectors, lengths=lengths, languages=corpus.languages)
            invariance = measure_invariance(embed, corpus.texts, lengths, vectors)
            if mining and reference.mining_errors is not None:
                mining_figures = compare_mining(mining, measure_mining(mining, embed), reference.mining_errors)
            if sts:
                correlation = measure_sts(sts, embed)
                sts_figures = StsFigures(
                    n_pairs=len(sts.scores), engine=correlation, reference=reference.sts_correlation
                )
        except ParityError as error:
            raise ParityError(f"{engine.name}: {error}") from None
    note = None if reference.is_pytorch else UNCERTIFIED_OWN
    if (engine.is_quantized_around_fp16 or engine.precision is Precision.FP16) and info.device == "cpu":
        note = UNCERTIFIED_FP16
    certificate = Certificate(
        reference=reference.description,
        corpus=reference.corpus.name,
        corpus_sha256=reference.corpus.sha256,
        backend=f"{info.backend} {info.version}",
        provider=info.providers[0],
        processor=info.processor,
        certified=note is None,
        note=note,
        figures=_certified_figures(breakdown.overall, invariance),
    )
    return Verdict(
        engine=dataclasses.replace(engine, certificates=[certificate]),
        breakdown=breakdown,
        invariance=invariance,
        shortfalls=check(breakdown.overall, engine.precision)
        + check_invariance(invariance.worst, engine.precision, is_around_fp16=engine.is_quantized_around_fp16),
        mining=mining_figures,
        sts=sts_figures,
    )


def _require_same_ids(ids: Ragged, reference: ReferenceVectors) -> None:
    """ParityError that names the first text, of the corpus and PROBES, of which the reference makes other `ids`."""
    if reference.ids is None:
        return
    texts = (*reference.corpus.texts, *PROBES)
    for row, (text, theirs) in enumerate(zip(texts, reference.ids, strict=True)):
        ours = ids[row].tolist()
        if ours != theirs:
            shorter = min(len(ours), len(theirs))
            at = next((i for i in range(shorter) if ours[i] != theirs[i]), shorter)
            raise ParityError(
                f"tokens differ from those of {reference.description}, so vectors are not compared: of the text "
                f"{text[:80]!r} it makes {len(theirs)} tokens and tokenizer.json {len(ours)}; from token {at} on it "
                f"has ids {theirs[at : at + 5]} and tokenizer.json {ours[at : at + 5]}. A file beside tokenizer.json "
                "changes what transformers makes of it: tokenizer_config.json, special_tokens_map.json, "
                "added_tokens.json or sentence_bert_config.json"
            )


def _certified_figures(figures: ParityFigures, invariance: BatchInvariance) -> dict[str, float | int | None]:
    ways = {f"_{way}": getattr(invariance, way) for way in ("alone", "mixed", "shuffled")}
    batch_mates = {
        f"batch_invariance{way}_{name}": value
        for way, found in {"": invariance.worst, **ways}.items()
        for name, value in dataclasses.asdict(found).items()
    }
    return {**dataclasses.asdict(figures), **batch_mates}


def _n_task_texts(mining: MiningCorpus | None, sts: StsPairs | None) -> int:
    return (mining.n_texts if mining else 0) + (2 * len(sts.scores) if sts else 0)


def _counted(encode: Callable[[Sequence[str], Count], Vectors], n_texts: int, progress: Count) -> Embed:
    """`encode`, its calls reporting together how many of `n_texts` they have embedded."""
    n_before = 0

    def embed(texts: Sequence[str]) -> Vectors:
        nonlocal n_before
        vectors = encode(texts, lambda done, _: progress(n_before + done, n_texts))
        n_before += len(texts)
        return vectors

    return embed


def _encode_by_reference(reference: Reference, prompt: str, texts: Sequence[str], progress: Count) -> Vectors:
    return reference.encode([prompt + text for text in texts], batch_size=8, sort_by_length=True, progress=progress)


def _encode(encoder: Encoder, texts: Sequence[str], progress: Count) -> Vectors:
    vectors = np.empty((len(texts), encoder.info.dim), dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # the reference truncates the same
        for row, vector in enumerate(encoder.encode_iter(texts)):
            vectors[row] = vector
            progress(row + 1, len(vectors))
    return vectors
