"""An export from top to bottom: checkpoint -> weights -> graphs -> parity gate -> published bundle."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mexma_export.bundle.engines import EngineWriter
from mexma_export.bundle.staging import Staging
from mexma_export.checkpoint.checkpoint import Checkpoint, WeightStatistics, check_fp16, load_checkpoint, scan_weights
from mexma_export.checkpoint.sources import Source
from mexma_export.corpus.corpus import gate_corpus
from mexma_export.graph.weights import weights_bytes
from mexma_export.parity.gate import ReferenceVectors, Verdict, judge, judging_device, reference_for
from mexma_export.parity.thresholds import THRESHOLDS
from mexma_export.quantize.options import QuantizationOptions
from mexma_export.quantize.recipe import Recipe
from mexma_runtime.bundle.bundle import Bundle, sha256_of
from mexma_runtime.bundle.manifest import SCHEMA, EngineEntry, FileEntry, Manifest, ModelEntry, TextEntry
from mexma_runtime.errors import BundleError, EngineUnavailableError, ParityError, UsageError
from mexma_runtime.terminal import Progress
from mexma_runtime.types import PADDED_DIALECTS, QUANTIZED, Dialect, Pooling, Precision

MAX_PACKED_HEAD_SIZE = 256
"""FlashAttention's limit."""
GRAPH_BYTES = 16 << 20
"""More than the graphs of one export take together, for the check of free disk."""


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """What to write, and where."""

    out: Path
    precisions: tuple[Precision, ...]
    dialects: tuple[Dialect, ...] = (Dialect.PORTABLE, Dialect.FUSED)
    pooling: Pooling | None = None
    """None: as the checkpoint says."""
    quantization: QuantizationOptions | None = None
    """What int8 and fp8 need to know."""
    check_parity: bool = True
    """False publishes engines that nothing has judged; the manifest shows it by their having no certificate."""
    device: str = "cpu"
    """What float engines are judged on: `cpu`, or a GPU, `cuda` or `cuda:1`."""

    def __post_init__(self) -> None:
        if not self.precisions or not self.dialects:
            raise UsageError("nothing to export: name a precision and a dialect or more")
        if unknown := set(self.precisions) - THRESHOLDS.keys():
            raise UsageError(f"precision {', '.join(unknown)}: this version writes {' and '.join(THRESHOLDS)}")
        if QUANTIZED.isdisjoint(self.precisions) != (self.quantization is None):
            raise UsageError("int8 and fp8 go with a recipe and calibration text, other precisions do without")
        if self.quantization and self.quantization.min_cosine and not self.check_parity:
            raise UsageError("min_cosine is measured by the parity check: leave out --skip-parity, or --min-cosine")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What came of an export."""

    manifest: Manifest
    """The bundle as it is now."""
    verdicts: list[Verdict]
    """One for each engine whose vectors could be compared."""
    refused: list[str]
    """Why engines were not published: one line for each reason."""
    warnings: tuple[str, ...]
    """What a user should hear of the checkpoint."""
    quantized: tuple[EngineEntry, ...] = ()
    """The int8 engines of this export that were published."""
    unjudged: tuple[str, ...] = ()
    """Engines that were published without a certificate, since nothing here runs them."""


class EnginesRefusedError(ParityError):
    """Engines that miss their thresholds, or cannot be judged here, were not published; `exported` says what was."""

    def __init__(self, exported: Exported) -> None:
        self.exported = exported
        lines = [f"  - {line}" for line in exported.refused]
        super().__init__("not published:\n" + "\n".join(lines))


def export(source: Source, plan: ExportPlan, *, progress: Progress | None = None) -> Exported:
    """Write the engines of `plan` from the checkpoint `source` into the bundle `plan.out`, and judge them.

    Makes a bundle, or adds and replaces engines in one of the same checkpoint. Raises CheckpointError, BundleError or
    UsageError before anything is published, and EnginesRefusedError after the engines that passed were.
    """
    report: Progress = progress or (lambda what, done, total: None)
    checkpoint = load_checkpoint(source, pooling=plan.pooling)
    with Staging(plan.out) as staging:
        staging.require_space(GRAPH_BYTES + _weights_bytes(checkpoint, plan))
        statistics = scan_weights(checkpoint, progress=functools.partial(report, "checking the weights"))
        if Precision.FP16 in plan.precisions or any(recipe.is_for_tensorrt for _, recipe in _jobs(plan)):
            check_fp16(checkpoint, statistics)
        dialects, warnings = _quantized_dialects(plan)
        manifest = _without_engines(checkpoint, statistics, _keep_tokenizer(checkpoint, staging))
        if staging.previous:
            _require_same_checkpoint(plan.out, staging.previous, manifest)
            manifest = dataclasses.replace(
                manifest, engines=staging.previous.engines, files=[*staging.previous.files, *manifest.files]
            )
        writer = EngineWriter(checkpoint, manifest, staging, report)
        gate = _Gate(checkpoint, plan, manifest, writer, report)
        for precision in plan.precisions:
            if precision not in QUANTIZED:
                gate.admit(writer.floats(precision, _float_dialects(plan, checkpoint)))
        if plan.quantization:
            wanted = _jobs(plan)
            for job, engines in zip(wanted, writer.quantized(wanted, plan.quantization, dialects), strict=True):
                _admit_quantized(gate, writer, job, engines, plan.quantization, dialects)
        if gate.admitted:
            staging.publish(gate.manifest)
    exported = Exported(
        manifest=gate.manifest,
        verdicts=gate.verdicts,
        refused=gate.refused,
        warnings=(*checkpoint.settings.warnings, *warnings),
        quantized=tuple(engine for engine in gate.admitted if engine.quantization),
        unjudged=tuple(gate.unjudged),
    )
    if gate.refused:
        raise EnginesRefusedError(exported)
    return exported


def _weights_bytes(checkpoint: Checkpoint, plan: ExportPlan) -> int:
    floats = sum(weights_bytes(checkpoint, p) for p in plan.precisions if p not in QUANTIZED)
    # Around fp16 the tables stay fp16, and so do some products.
    around_fp16 = sum(recipe.is_for_tensorrt for _, recipe in _jobs(plan))
    eight_bits = (len(_jobs(plan)) - around_fp16) * weights_bytes(checkpoint, Precision.FP32) // 4
    return floats + eight_bits + around_fp16 * weights_bytes(checkpoint, Precision.FP16)


def _jobs(plan: ExportPlan) -> list[tuple[Precision, Recipe]]:
    return plan.quantization.jobs(plan.precisions) if plan.quantization else []


class _Gate:
    """Judges what was written, and remembers which engines may be published."""

    def __init__(
        self, checkpoint: Checkpoint, plan: ExportPlan, base: Manifest, writer: EngineWriter, report: Progress
    ) -> None:
        self._checkpoint, self._plan, self._base, self._writer, self._report = checkpoint, plan, base, writer, report
        self._reference: ReferenceVectors | None = None
        self.admitted: list[EngineEntry] = []
        self.verdicts: list[Verdict] = []
        self.refused: list[str] = []
        self.unjudged: list[str] = []

    @property
    def checks_parity(self) -> bool:
        """Whether engines are judged at all."""
        return self._plan.check_parity

    @property
    def manifest(self) -> Manifest:
        """The bundle with all that was admitted."""
        return self._bundle_with(self.admitted)

    def admit(self, engines: list[EngineEntry]) -> None:
        """Judge `engines` and admit those that meet their thresholds; all of them where parity is not to be checked."""
        judged = [engine for engine in engines if self._plan.check_parity and self._device_for(engine)]
        self.admitted += [engine for engine in engines if engine not in judged]
        if self._plan.check_parity:
            self.unjudged += [engine.name for engine in engines if engine not in judged]
        if judged:
            self.decide(self.judge(judged))

    def judge(self, engines: list[EngineEntry]) -> list[Verdict]:
        """A verdict for each engine whose vectors can be compared; the others are refused."""
        candidate = Bundle(folder=self._plan.out, manifest=self._bundle_with([*self.admitted, *engines]))
        if self._reference is None:
            progress = functools.partial(self._report, "reference vectors")
            self._reference = reference_for(self._checkpoint, candidate, gate_corpus(), progress=progress)
        verdicts = []
        for engine in engines:
            progress = functools.partial(self._report, f"judging {engine.name}")
            try:
                device = self._device_for(engine) or self._plan.device
                verdicts.append(judge(candidate, engine, self._reference, device=device, progress=progress))
            except (ParityError, EngineUnavailableError) as error:  # NaN in its vectors, say, or no VNNI here
                self.refused.append(str(error))
        return verdicts

    def decide(self, verdicts: list[Verdict]) -> None:
        """Admit or refuse what was judged."""
        self.verdicts += verdicts
        for verdict in verdicts:
            self.refused += [f"{verdict.engine.name}: {shortfall}" for shortfall in verdict.shortfalls]
        self.admitted += [verdict.engine for verdict in verdicts if not verdict.shortfalls]

    def _device_for(self, engine: EngineEntry) -> str | None:
        return judging_device(engine, self._plan.device)

    def _bundle_with(self, engines: list[EngineEntry]) -> Manifest:
        files = [*self._base.files, *self._writer.files]
        return _with_engines(dataclasses.replace(self._base, files=files), engines)


def _admit_quantized(
    gate: _Gate,
    writer: EngineWriter,
    job: tuple[Precision, Recipe],
    engines: list[EngineEntry],
    options: QuantizationOptions,
    dialects: tuple[Dialect, ...],
) -> None:
    """Judge one recipe's engines; for `min_cosine`, write them again with the worst products in float until met."""
    precision, recipe = job
    min_cosine = options.min_cosine_of(precision) if gate.checks_parity else None
    if min_cosine is None:
        gate.admit(engines)
        return
    max_float_share = options.max_float_share_of(precision)
    floats: frozenset[str] = frozenset()
    while True:
        verdicts = gate.judge(engines)
        least = min((verdict.figures.cosine_mean for verdict in verdicts), default=-1.0)
        if least >= min_cosine:
            gate.decide(verdicts)
            return
        more = writer.more_floats(
            engines, floats, least_cosine=least, min_cosine=min_cosine, max_float_share=max_float_share
        )
        if more == floats:
            gate.refused.append(
                f"recipe {recipe.name}: mean cosine: expected >= {min_cosine:g}, got {least:.6f} with "
                f"{writer.float_share(floats):.1%} of the multiplications in float, and {max_float_share:.1%} "
                "are allowed: allow more by --max-float-share, or choose "
                + ("int8, or fp16" if recipe.is_for_tensorrt else "the recipe precise, or fp32")
            )
            return
        floats = more
        engines = writer.quantized((job,), options, dialects, floats=floats)[0]


def _quantized_dialects(plan: ExportPlan) -> tuple[tuple[Dialect, ...], list[str]]:
    """The dialects that can be judged here, and what to tell the user of the others."""
    asked = tuple(dialect for dialect in plan.dialects if dialect in PADDED_DIALECTS)
    recipes = plan.quantization.recipes if plan.quantization else ()
    if recipes and not asked:
        raise UsageError(f"there is no int8 in the dialect packed: ask for {' or '.join(PADDED_DIALECTS)}")
    for recipe in recipes:
        if recipe.modes.keys().isdisjoint(asked):
            raise UsageError(
                f"recipe {recipe.name} is for the dialect {' and '.join(recipe.modes)}, and {' and '.join(asked)} was "
                "asked for"
            )
    for_cpus = [recipe for recipe in recipes if Dialect.PORTABLE in recipe.modes and not recipe.is_for_tensorrt]
    is_judged = bool(for_cpus) and plan.check_parity
    if not is_judged or Dialect.PORTABLE not in asked or find_spec("openvino"):
        return asked, []
    what = "portable int8 engines are for OpenVINO, which is not installed to judge them"
    advice = "pip install 'mexma-runtime[openvino]', or export with --skip-parity"
    if asked == (Dialect.PORTABLE,) or len(for_cpus) < len(recipes):
        raise UsageError(f"{what}: {advice}")
    return tuple(d for d in asked if d is not Dialect.PORTABLE), [f"{what}: none was written: {advice}"]


def _float_dialects(plan: ExportPlan, checkpoint: Checkpoint) -> tuple[Dialect, ...]:
    """The dialects asked for; UsageError for packed, where CUDA's packed kernels do not serve the model's heads."""
    head_size = checkpoint.config.head_size
    if Dialect.PACKED in plan.dialects and (head_size % 8 or head_size > MAX_PACKED_HEAD_SIZE):
        raise UsageError(
            f"dialect packed: expected heads of 8, 16, ... {MAX_PACKED_HEAD_SIZE} numbers, which packed attention "
            f"kernels take, got {head_size}: leave it out (--dialect portable --dialect fused)"
        )
    return plan.dialects


def _without_engines(checkpoint: Checkpoint, statistics: WeightStatistics, tokenizer: FileEntry) -> Manifest:
    """The manifest that all engines of this checkpoint share."""
    config, settings, source = checkpoint.config, checkpoint.settings, checkpoint.source
    return Manifest(
        schema=SCHEMA,
        writer=f"mexma-runtime {_version()}",
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


def _version() -> str:
    try:
        return importlib.metadata.version("mexma-runtime")
    except importlib.metadata.PackageNotFoundError:
        return "not installed but run from its source"


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


def _with_engines(manifest: Manifest, new: list[EngineEntry]) -> Manifest:
    """`manifest` with `new` engines added or put in place of those of the same name, and only the files they need."""
    engines = {engine.name: engine for engine in [*manifest.engines, *new]}
    ordered = [engines[name] for name in sorted(engines)]
    needed = {manifest.text.tokenizer} | {file for e in ordered for file in (e.file, *e.weights)}
    files = {entry.name: entry for entry in manifest.files if entry.name in needed}
    return dataclasses.replace(manifest, engines=ordered, files=[files[name] for name in sorted(files)])
