"""An export from top to bottom: checkpoint -> weights -> graphs -> parity gate -> published bundle."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import shutil
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from mexma_export.checkpoint import Checkpoint, WeightStatistics, check_fp16, load_checkpoint, scan_weights
from mexma_export.corpus import gate_corpus
from mexma_export.gate import Verdict, judge, reference_for
from mexma_export.graph.encoder import INPUTS, OUTPUT, write_encoder
from mexma_export.sources import Source
from mexma_export.staging import Staging
from mexma_export.thresholds import THRESHOLDS
from mexma_export.weights import WeightsFile, weights_bytes, write_weights
from mexma_runtime.bundle import Bundle, sha256_of
from mexma_runtime.errors import BundleError, ParityError, UsageError
from mexma_runtime.manifest import SCHEMA, EngineEntry, FileEntry, Manifest, ModelEntry, TextEntry, space_fingerprint
from mexma_runtime.terminal import Progress
from mexma_runtime.types import Dialect, Pooling, Precision

GRAPH_BYTES = 16 << 20
"""More than the graphs of one export take together, for the check of free disk."""
LEAST_ONNXRUNTIME = "1.20.1"
"""The oldest release that runs both dialects in both precisions; 1.20.0 fails in fp16 SkipLayerNormalization."""


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """What to write, and where."""

    out: Path
    precisions: tuple[Precision, ...]
    dialects: tuple[Dialect, ...] = (Dialect.PORTABLE, Dialect.FUSED)
    pooling: Pooling | None = None
    """None: as the checkpoint says."""
    check_parity: bool = True
    """False publishes engines that nothing has judged; the manifest shows it by their having no certificate."""

    def __post_init__(self) -> None:
        if not self.precisions or not self.dialects:
            raise UsageError("nothing to export: name a precision and a dialect or more")
        if unknown := set(self.precisions) - THRESHOLDS.keys():
            raise UsageError(f"precision {', '.join(unknown)}: this version writes {' and '.join(THRESHOLDS)}")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What came of an export."""

    manifest: Manifest
    """The bundle as it is now."""
    verdicts: list[Verdict]
    """One for each engine whose vectors could be compared."""
    refused: list[str]
    """Why engines were not published: one line for each figure that misses its threshold."""
    warnings: tuple[str, ...]
    """What a user should hear of the checkpoint."""


class EnginesRefusedError(ParityError):
    """Engines that miss their thresholds were not published; `exported` says what was."""

    def __init__(self, exported: Exported) -> None:
        self.exported = exported
        lines = [f"  - {line}" for line in exported.refused]
        super().__init__("not published, because their vectors miss the thresholds:\n" + "\n".join(lines))


def export(source: Source, plan: ExportPlan, *, progress: Progress | None = None) -> Exported:
    """Write the engines of `plan` from the checkpoint `source` into the bundle `plan.out`, and judge them.

    Makes a bundle, or adds and replaces engines in one of the same checkpoint. Raises CheckpointError, BundleError or
    UsageError before anything is published, and EnginesRefusedError after the engines that passed were.
    """
    report: Progress = progress or (lambda what, done, total: None)
    checkpoint = load_checkpoint(source, pooling=plan.pooling)
    with Staging(plan.out) as staging:
        staging.require_space(GRAPH_BYTES + sum(weights_bytes(checkpoint, p) for p in plan.precisions))
        statistics = scan_weights(checkpoint, progress=functools.partial(report, "checking the weights"))
        if Precision.FP16 in plan.precisions:
            check_fp16(checkpoint, statistics)
        manifest = _without_engines(checkpoint, statistics, _keep_tokenizer(checkpoint, staging))
        if staging.previous:
            _require_same_checkpoint(plan.out, staging.previous, manifest)
            manifest = dataclasses.replace(
                manifest, engines=staging.previous.engines, files=[*staging.previous.files, *manifest.files]
            )
        written: list[EngineEntry] = []
        for precision in plan.precisions:
            engines, files = _write_engines(checkpoint, plan, precision, manifest, staging, report)
            written += engines
            manifest = dataclasses.replace(manifest, files=[*manifest.files, *files])

        verdicts: list[Verdict] = []
        refused: list[str] = []
        if plan.check_parity:
            candidate = Bundle(folder=plan.out, manifest=_with_engines(manifest, written))
            reference = reference_for(
                checkpoint, candidate, gate_corpus(), progress=functools.partial(report, "reference vectors")
            )
            for engine in written:
                what = f"judging {engine.name}"
                try:
                    verdict = judge(candidate, engine, reference, progress=functools.partial(report, what))
                except ParityError as error:  # NaN in its vectors, say
                    refused.append(str(error))
                else:
                    verdicts.append(verdict)
                    refused += [f"{engine.name}: {shortfall}" for shortfall in verdict.shortfalls]
            written = [verdict.engine for verdict in verdicts if not verdict.shortfalls]
        manifest = _with_engines(manifest, written)
        if written:
            staging.publish(manifest)
    exported = Exported(manifest=manifest, verdicts=verdicts, refused=refused, warnings=checkpoint.settings.warnings)
    if refused:
        raise EnginesRefusedError(exported)
    return exported


def _without_engines(checkpoint: Checkpoint, statistics: WeightStatistics, tokenizer: FileEntry) -> Manifest:
    """The manifest that all engines of this checkpoint share."""
    config, settings, source = checkpoint.config, checkpoint.settings, checkpoint.source
    return Manifest(
        schema=SCHEMA,
        writer=f"mexma-runtime {importlib.metadata.version('mexma-runtime')}",
        model=ModelEntry(
            id=source.model_id,
            revision=source.revision,
            weights_sha256=statistics.sha256,
            family=config.family,
            n_layers=config.n_layers,
            hidden_size=config.hidden_size,
            n_heads=config.n_heads,
            vocab_size=config.vocab_size,
        ),
        pooling=settings.pooling,
        normalize=settings.normalize,
        text=TextEntry(
            tokenizer=tokenizer.name,
            max_tokens=settings.max_tokens,
            max_tokens_source=settings.max_tokens_source,
            lower_case=settings.lower_case,
            padding_id=config.padding_id,
            position_scheme=config.position_scheme,
            prompts=settings.prompts,
            default_prompt_name=settings.default_prompt_name,
        ),
        files=[tokenizer],
        engines=[],
    )


def _keep_tokenizer(checkpoint: Checkpoint, staging: Staging) -> FileEntry:
    """The checkpoint's tokenizer.json, byte for byte: the runtime switches its padding and truncation off."""
    path = staging.temporary("tokenizer")
    shutil.copyfile(checkpoint.source.tokenizer, path)
    sha256 = sha256_of(path)
    return staging.keep(path, f"tokenizer.{sha256[:16]}.json", sha256=sha256)


def _require_same_checkpoint(out: Path, old: Manifest, new: Manifest) -> None:
    """Engines of one bundle embed into comparable spaces: refuse another checkpoint's."""
    pairs = {
        "weights": (old.model.weights_sha256, new.model.weights_sha256),
        "tokenizer": (old.text.tokenizer, new.text.tokenizer),
        "pooling": (old.pooling.value, new.pooling.value),
        "normalisation": (old.normalize.value, new.normalize.value),
        "most tokens": (old.text.max_tokens, new.text.max_tokens),
        "lower case": (old.text.lower_case, new.text.lower_case),
        "prompts": (old.text.prompts, new.text.prompts),
        "default prompt": (old.text.default_prompt_name, new.text.default_prompt_name),
    }
    if differing := [f"{what} {a} there, {b} here" for what, (a, b) in pairs.items() if a != b]:
        raise BundleError(
            out,
            f"holds a bundle of {old.model.id}, and this checkpoint ({new.model.id}) differs: {'; '.join(differing)}. "
            "Export it into another folder",
        )


def _write_engines(
    checkpoint: Checkpoint,
    plan: ExportPlan,
    precision: Precision,
    manifest: Manifest,
    staging: Staging,
    report: Progress,
) -> tuple[list[EngineEntry], list[FileEntry]]:
    """One weights file and a graph for each dialect, under their final names but not yet published."""
    weights = write_weights(
        checkpoint,
        precision,
        staging.temporary(f"weights.{precision}"),
        progress=functools.partial(report, f"writing {precision} weights"),
    )
    files = [staging.keep(weights.written, weights.name, sha256=weights.sha256)]
    engines = []
    for dialect in plan.dialects:
        name = f"{dialect}.{precision}"
        entry = _keep_graph(checkpoint, weights, dialect, precision, f"model.{name}", staging)
        files.append(entry)
        engines.append(
            EngineEntry(
                name=name,
                dialect=dialect,
                precision=precision,
                recipe=None,
                activation=None,
                file=entry.name,
                weights=[weights.name],
                inputs=list(INPUTS),
                output=OUTPUT,
                requires={"onnxruntime": LEAST_ONNXRUNTIME},
                space=space_fingerprint(
                    weights_sha256=manifest.model.weights_sha256,
                    tokenizer_sha256=manifest.file(manifest.text.tokenizer).sha256,
                    text=manifest.text,
                    pooling=manifest.pooling_mode,
                    normalize=manifest.is_normalized,
                    precision=precision,
                    recipe=None,
                ),
            )
        )
    return engines, files


def _keep_graph(
    checkpoint: Checkpoint,
    weights: WeightsFile,
    dialect: Dialect,
    precision: Precision,
    stem: str,
    staging: Staging,
) -> FileEntry:
    model = write_encoder(
        checkpoint.config,
        weights.tensors,
        dialect=dialect,
        precision=precision,
        pooling=checkpoint.settings.pooling_mode,
    )
    path = staging.temporary(stem)
    ir.save(model, path, format="protobuf")
    sha256 = sha256_of(path)
    return staging.keep(path, f"{stem}.{sha256[:16]}.onnx", sha256=sha256)


def _with_engines(manifest: Manifest, new: list[EngineEntry]) -> Manifest:
    """`manifest` with `new` engines added or put in place of those of the same name, and only the files they need."""
    engines = {engine.name: engine for engine in [*manifest.engines, *new]}
    ordered = [engines[name] for name in sorted(engines)]
    needed = {manifest.text.tokenizer} | {file for e in ordered for file in (e.file, *e.weights)}
    files = {entry.name: entry for entry in manifest.files if entry.name in needed}
    return dataclasses.replace(manifest, engines=ordered, files=[files[name] for name in sorted(files)])
