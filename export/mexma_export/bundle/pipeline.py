"""An export from top to bottom: checkpoint -> jobs -> written -> judged -> published bundle."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from mexma_export.bundle.contents import manifest_of, with_engines
from mexma_export.bundle.engines import EngineWriter
from mexma_export.bundle.jobs import jobs
from mexma_export.bundle.judging import Judge, Judged
from mexma_export.bundle.request import ExportRequest, quantized_dialects
from mexma_export.bundle.staging import Staging
from mexma_export.checkpoint.checkpoint import load_checkpoint
from mexma_export.checkpoint.scan import scan_weights
from mexma_export.checkpoint.sources import Source
from mexma_export.parity.gate import Verdict
from mexma_runtime.bundle.manifest import EngineEntry, Manifest
from mexma_runtime.errors import ParityError
from mexma_runtime.terminal import Progress

GRAPH_BYTES = 16 << 20
"""More than the graphs of one export take together, for the check of free disk."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What came of an export."""

    manifest: Manifest
    """The bundle as it is now."""
    verdicts: list[Verdict]
    """One for each engine whose vectors could be compared, but for jobs that missed their min_cosine."""
    refused: list[str]
    """Why engines were not published: one line for each reason."""
    warnings: tuple[str, ...]
    """What a user should hear of the checkpoint, of what was not written, and of what a file system cannot assure."""
    quantized: tuple[EngineEntry, ...] = ()
    """The int8 and fp8 engines of this export that were published."""
    unjudged: tuple[str, ...] = ()
    """Engines that were published without a certificate, since nothing here runs them."""


class EnginesRefusedError(ParityError):
    """Engines that miss their thresholds, or cannot be judged here, were not published; `exported` says what was."""

    def __init__(self, exported: Exported) -> None:
        self.exported = exported
        lines = [f"  - {line}" for line in exported.refused]
        super().__init__("not published:\n" + "\n".join(lines))


def export(source: Source, request: ExportRequest, *, progress: Progress | None = None) -> Exported:
    """Write the engines of `request` from the checkpoint `source` into the bundle `request.out`, and judge them.

    Makes a bundle, or adds and replaces engines in one of the same checkpoint. Raises CheckpointError, BundleError,
    FileError or UsageError before anything is published, and EnginesRefusedError after the engines that passed were.
    """
    report: Progress = progress or (lambda what, done, total: None)
    checkpoint = load_checkpoint(source, pooling=request.pooling)
    wanted = jobs(request, checkpoint)
    with Staging(request.out) as staging:
        staging.require_space(GRAPH_BYTES + sum(job.n_bytes for job in wanted))
        weights = scan_weights(
            checkpoint,
            needs_fp16=any(job.needs_fp16 for job in wanted),
            progress=functools.partial(report, "checking the weights"),
        )
        # The runtime switches the padding and truncation of tokenizer.json off.
        tokenizer = staging.keep_bytes(checkpoint.tokenizer, "tokenizer", "json")
        manifest = manifest_of(
            checkpoint, weights=weights, tokenizer=tokenizer, folder=request.out, there=staging.previous
        )
        calibration = request.quantization.calibration if request.quantization else None
        writer = EngineWriter(checkpoint, manifest, staging, report, calibration=calibration)
        gate = Judge(checkpoint, request.out, manifest, request.device, report)
        judge = gate.judge if request.check_parity else Judged.unchecked
        done: list[Judged] = []
        for written in writer.write(wanted):
            judged = judge(written)
            while job := judged.retry:
                judged = judge(*writer.write([job]))
            done.append(judged)
        admitted = [engine for judged in done for engine in judged.admitted]
        if admitted:
            manifest = with_engines(manifest, admitted, [file for judged in done for file in judged.written.files])
            staging.publish(manifest)
    exported = Exported(
        manifest=manifest,
        verdicts=[verdict for judged in done if not judged.missed_cosine for verdict in judged.verdicts],
        refused=[line for judged in done for line in judged.refused],
        warnings=(*checkpoint.warnings, *quantized_dialects(request)[1], *staging.warnings),
        quantized=tuple(engine for judged in done for engine in judged.admitted if engine.quantization),
        unjudged=tuple(engine.name for judged in done for engine in judged.unjudged) if request.check_parity else (),
    )
    if exported.refused:
        raise EnginesRefusedError(exported)
    return exported
