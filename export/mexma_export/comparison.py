"""What `mexma parity` does: the engines of a published bundle, judged by the checkpoint that they were made from."""

from __future__ import annotations

import functools
from pathlib import Path

from mexma_export.checkpoint import Checkpoint, load_checkpoint, weights_sha256
from mexma_export.corpus import Corpus, sample_corpus
from mexma_export.gate import ReferenceVectors, Verdict, judge, pytorch_reference
from mexma_export.mining import MiningCorpus
from mexma_export.sources import Source
from mexma_export.sts import StsPairs
from mexma_runtime.bundle import Bundle, sha256_of
from mexma_runtime.errors import EngineUnavailableError, UsageError
from mexma_runtime.terminal import Progress
from mexma_runtime.types import Precision


def compare_bundle(
    folder: Path,
    source: Source,
    *,
    corpus: Corpus | None,
    mining: MiningCorpus | None = None,
    sts: StsPairs | None = None,
    precisions: list[Precision] | None,
    progress: Progress,
) -> tuple[list[Verdict], ReferenceVectors]:
    """Judge the published engines of a bundle by PyTorch, over `corpus` (None: the package's own) and the tasks given.

    UsageError where `source` is not the checkpoint that they were made from; ParityError where
    vectors cannot be compared.
    """
    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    engines = [e for e in manifest.engines if not precisions or e.precision in precisions]
    if not engines:
        there = ", ".join(engine.name for engine in manifest.engines)
        raise EngineUnavailableError(f"{folder}: no engine of {', '.join(precisions or [])}; it has {there}")
    checkpoint = load_checkpoint(source, pooling=manifest.pooling_mode)
    _require_same_checkpoint(bundle, checkpoint)
    reference = pytorch_reference(
        checkpoint,
        corpus or sample_corpus(),
        mining=mining,
        sts=sts,
        progress=functools.partial(progress, "reference vectors"),
    )
    verdicts = []
    for engine in engines:
        what = f"judging {engine.name}"
        verdicts.append(judge(bundle, engine, reference, progress=functools.partial(progress, what)))
    return verdicts, reference


def _require_same_checkpoint(bundle: Bundle, checkpoint: Checkpoint) -> None:
    manifest, source = bundle.manifest, checkpoint.source
    digest = weights_sha256(checkpoint)
    if digest != manifest.model.weights_sha256:
        raise UsageError(
            f"{bundle.folder} was made from {manifest.model.id} with weights {manifest.model.weights_sha256}, and "
            f"{source.model_id} has {digest}: compare it with its own checkpoint"
        )
    expected, got = manifest.file(manifest.text.tokenizer).sha256, sha256_of(source.tokenizer)
    if got != expected:
        raise UsageError(
            f"{bundle.folder} was made with a tokenizer.json of sha256 {expected}, and {source.tokenizer} has {got}: "
            "name the one that it was made with by --tokenizer"
        )
