"""What `mexma parity` does: the engines of a published bundle, judged by the checkpoint that they were made from."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from mexma_export.bundle.contents import require_same_checkpoint
from mexma_export.bundle.staging import Staging
from mexma_export.checkpoint.checkpoint import load_checkpoint
from mexma_export.checkpoint.sources import Source
from mexma_export.corpus.corpus import Corpus, sample_corpus
from mexma_export.parity.gate import ReferenceVectors, Verdict, judge, pytorch_reference
from mexma_export.parity.mining import MiningCorpus
from mexma_export.parity.sts import StsPairs
from mexma_runtime.backends import device_for, runs_by
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import Certificate, EngineEntry
from mexma_runtime.errors import BundleError, EngineUnavailableError
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
    device: str = "cpu",
    backend: str | None = None,
    progress: Progress,
) -> tuple[list[Verdict], ReferenceVectors]:
    """Judge the published engines of a bundle by PyTorch, over `corpus` (None: the package's own) and the tasks given.

    On a `device` that is a GPU, the float engines, or by the `backend` tensorrt those that it takes; on a CPU all but
    packed ones. BundleError where `source` is not the checkpoint that they were made from; ParityError where vectors
    cannot be compared.
    """
    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    engines = [
        e
        for e in manifest.engines
        if (not precisions or e.precision in precisions)
        and (runs_by(e, device, backend) if backend else device_for(e, device) == device)
    ]
    if not engines:
        there = ", ".join(engine.name for engine in manifest.engines)
        wanted = f" of {', '.join(precisions)}" if precisions else ""
        where = f"{backend} on {device}" if backend else device
        raise EngineUnavailableError(f"{folder}: no engine{wanted} that runs on {where}; it has {there}")
    checkpoint = load_checkpoint(source, pooling=manifest.pooling_mode)
    require_same_checkpoint(folder, manifest, checkpoint)
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
        of_engine = functools.partial(progress, what)
        verdicts.append(judge(bundle, engine, reference, device=device, backend=backend, progress=of_engine))
    return verdicts, reference


def certify(folder: Path, verdicts: list[Verdict]) -> tuple[list[str], tuple[str, ...]]:
    """Give the engines of a bundle the certificates of `verdicts`: names of those engines, and warnings to tell.

    Of one processor and library an engine has one certificate, the newest; engines that miss a threshold get none.
    """
    passed = {verdict.engine.name: verdict for verdict in verdicts if not verdict.shortfalls}
    with Staging(folder) as staging:
        manifest = staging.previous
        if manifest is None:
            raise BundleError(folder, "holds no bundle any more")
        files = {engine.file for engine in manifest.engines}
        if changed := [name for name, verdict in passed.items() if verdict.engine.file not in files]:
            raise BundleError(folder, f"{', '.join(changed)} changed while it was judged: judge again")
        engines = [
            _with_certificate(engine, passed[engine.name].certificate) if engine.name in passed else engine
            for engine in manifest.engines
        ]
        staging.publish(dataclasses.replace(manifest, engines=engines))
    return list(passed), staging.warnings


def _with_certificate(engine: EngineEntry, new: Certificate) -> EngineEntry:
    def where(certificate: Certificate) -> tuple[str, str, str]:
        return certificate.backend, certificate.provider, certificate.processor

    others = [certificate for certificate in engine.certificates if where(certificate) != where(new)]
    return dataclasses.replace(engine, certificates=[*others, new])
