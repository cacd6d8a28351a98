"""A checkpoint made ready to be measured: its bundle, its tokenizer, and the task that every subject is given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers.normalizers import Lowercase

from mexma_benchmarks.adapters.protocol import Task
from mexma_benchmarks.run.subjects import Subject
from mexma_benchmarks.run.workload import SHORT_TEXT
from mexma_export.bundle.contents import require_same_checkpoint
from mexma_export.bundle.pipeline import export
from mexma_export.bundle.request import ExportRequest
from mexma_export.checkpoint.checkpoint import Checkpoint, load_checkpoint
from mexma_export.checkpoint.sources import STANDIN_PREFIX, Source
from mexma_export.quantize.options import QuantizationOptions
from mexma_export.quantize.recipe import FOR_CPUS, load_recipe
from mexma_runtime.bundle.bundle import Bundle, read_manifest
from mexma_runtime.bundle.manifest import Manifest
from mexma_runtime.errors import UsageError
from mexma_runtime.terminal import Progress, note
from mexma_runtime.text.tokenizer import TextTokenizer, TokenizerSpec
from mexma_runtime.types import PADDED_DIALECTS, Dialect, Pooling, Precision, Ragged


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A checkpoint and its bundle."""

    name: str
    checkpoint: Checkpoint
    bundle: Bundle
    tokenizer: TextTokenizer
    task: Task
    """What every subject is given, but for its folder and its options."""

    @property
    def is_standin(self) -> bool:
        """Whether the weights are random."""
        return self.checkpoint.source.model_id.startswith(STANDIN_PREFIX)

    @property
    def checkpoint_bytes(self) -> int:
        """Weights and tokenizer, as they lie in the checkpoint's folder."""
        source = self.checkpoint.source
        return sum(path.stat().st_size for path in (*source.folder.glob("*.safetensors"), source.tokenizer))

    def subject_bytes(self, subject: Subject) -> int | None:
        """What `subject` needs to lie on disk, tokenizer included; None for a server, which keeps it elsewhere."""
        if subject.adapter == "http_server":
            return None
        if subject.role != "engine":
            return self.checkpoint_bytes
        manifest = self.bundle.manifest
        engine = next(engine for engine in manifest.engines if engine.name == subject.options["engine"])
        return sum(manifest.file(name).size for name in (engine.file, *engine.weights, manifest.text.tokenizer))

    def prompted(self, texts: Sequence[str]) -> list[str]:
        """The texts as subjects get them: behind the checkpoint's default prompt, in lower case if it asks for it."""
        settings = self.checkpoint.settings
        whole = [settings.default_prompt + text for text in texts]
        return [Lowercase().normalize_str(text) for text in whole] if settings.lower_case else whole

    def tokenize(self, texts: Sequence[str]) -> Ragged:
        """The ids of texts that have their prompt already."""
        return self.tokenizer.encode(texts).ragged


def prepare_model(
    source: Source,
    *,
    pooling: Pooling | None,
    bundle: Path | None,
    int8: bool,
    n_threads: int,
    device: str,
    report: Progress,
) -> Prepared:
    """The bundle of `source`, exported in fp32, and for a GPU in fp16, where there is none yet.

    UsageError where it is another checkpoint's.

    With `int8` it has the int8 engines of the package's own recipes too: those that it lacks are added to it.
    """
    name = source.model_id + (f" pooled {pooling}" if pooling else "")
    folder = bundle or Path("engines/bench") / re.sub(r"[^\w.]+", "-", name)
    manifest = read_manifest(folder)
    if manifest is None:
        floats = (Precision.FP32,) if device == "cpu" else (Precision.FP16, Precision.FP32)
        request = _request(folder, floats, lacking_recipes(None) if int8 else (), pooling, device=device)
        manifest = export(source, request, progress=report).manifest
    else:
        note(f"{name}: measuring the bundle in {folder}; remove it to have it exported anew")
    if pooling not in (None, manifest.pooling_mode):
        raise UsageError(f"{folder} pools {manifest.pooling_mode}, not {pooling}: name another --bundle")
    checkpoint = load_checkpoint(source, pooling=manifest.pooling_mode)
    require_same_checkpoint(folder, manifest, checkpoint)
    if int8 and (lacking := lacking_recipes(manifest)):
        note(f"{name}: adding int8 engines to it: {', '.join(lacking)}")
        manifest = export(source, _request(folder, (), lacking, manifest.pooling_mode), progress=report).manifest
    opened, text = Bundle.open(folder), manifest.text
    return Prepared(
        name=name,
        checkpoint=checkpoint,
        bundle=opened,
        tokenizer=TextTokenizer(
            opened.path(text.tokenizer), TokenizerSpec(max_tokens=text.max_tokens, lower_case=text.lower_case)
        ),
        task=Task(
            checkpoint=str(source.folder),
            tokenizer=str(source.tokenizer.parent),
            pooling=manifest.pooling_mode,
            is_normalized=manifest.is_normalized,
            max_tokens=text.max_tokens,
            n_threads=n_threads,
            device=device,
            folder=str(folder.absolute()),
            first_text=checkpoint.settings.default_prompt + SHORT_TEXT,
        ),
    )


def lacking_recipes(manifest: Manifest | None) -> tuple[str, ...]:
    """The package's recipes of which a bundle (None: an empty one) lacks the int8 engine of a dialect."""
    engines = manifest.engines if manifest else []
    there = {(engine.recipe, engine.dialect) for engine in engines if engine.precision is Precision.INT8}
    return tuple(recipe for recipe in FOR_CPUS if any((recipe, dialect) not in there for dialect in PADDED_DIALECTS))


def _request(
    folder: Path,
    floats: tuple[Precision, ...],
    recipes: Sequence[str],
    pooling: Pooling | None,
    *,
    device: str = "cpu",
) -> ExportRequest:
    """Nothing is judged: measuring the engines does that."""
    return ExportRequest(
        out=folder,
        precisions=(*floats, Precision.INT8) if recipes else floats,
        dialects=PADDED_DIALECTS if device == "cpu" else tuple(Dialect),
        pooling=pooling,
        quantization=QuantizationOptions(recipes=tuple(map(load_recipe, recipes))) if recipes else None,
        check_parity=False,
    )
