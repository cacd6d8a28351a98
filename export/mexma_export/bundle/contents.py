"""What a bundle's manifest says: of the checkpoint that all its engines share, and with more engines."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

from mexma_export.checkpoint.checkpoint import Checkpoint
from mexma_export.checkpoint.scan import weights_sha256
from mexma_runtime.bundle.bundle import content_name
from mexma_runtime.bundle.companions import with_companions
from mexma_runtime.bundle.manifest import SCHEMA, EngineEntry, FileEntry, Manifest, ModelEntry, TextEntry
from mexma_runtime.errors import BundleError


def manifest_of(
    checkpoint: Checkpoint, *, weights: str, tokenizer: FileEntry, folder: Path, there: Manifest | None
) -> Manifest:
    """What a bundle of `checkpoint` says of it, with the engines of the bundle that is `there` in `folder` already.

    `weights`: their sha256. BundleError where that is another checkpoint's.
    """
    config, settings, source = checkpoint.config, checkpoint.settings, checkpoint.source
    here = with_companions(
        Manifest(
            schema=SCHEMA,
            writer=f"mexma-runtime {_version()}",
            model=ModelEntry(
                id=source.model_id,
                revision=source.revision,
                weights_sha256=weights,
                family=config.family,
                n_layers=config.n_layers,
                hidden_size=config.hidden_size,
                n_heads=config.n_heads,
                vocab_size=config.vocab_size,
            ),
            pooling=settings.pooling,
            normalize=settings.normalize,
            similarity=settings.similarity,
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
    )
    if there is None:
        return here
    _require_same_checkpoint(folder, there, here)
    return with_engines(here, there.engines, there.files)


def with_engines(manifest: Manifest, engines: Iterable[EngineEntry], files: Iterable[FileEntry]) -> Manifest:
    """`manifest` with `engines` added or put in place of those of the same name, and only the files that are needed."""
    by_name = {engine.name: engine for engine in [*manifest.engines, *engines]}
    ordered = [by_name[name] for name in sorted(by_name)]
    needed = {manifest.text.tokenizer} | {file for e in ordered for file in (e.file, *e.weights)}
    there = {entry.name: entry for entry in [*manifest.files, *files] if entry.name in needed}
    return dataclasses.replace(manifest, engines=ordered, files=[there[name] for name in sorted(there)])


def require_same_checkpoint(folder: Path, there: Manifest, checkpoint: Checkpoint) -> None:
    """BundleError unless the bundle `there` in `folder` was made from `checkpoint`, whose weights are hashed for it."""
    sha256 = hashlib.sha256(checkpoint.tokenizer).hexdigest()
    tokenizer = FileEntry(name=content_name("tokenizer", sha256, "json"), sha256=sha256, size=0)
    manifest_of(checkpoint, weights=weights_sha256(checkpoint), tokenizer=tokenizer, folder=folder, there=there)


def _require_same_checkpoint(folder: Path, there: Manifest, here: Manifest) -> None:
    """BundleError unless the bundle in `folder`, `there`, and a checkpoint, `here`, are of one vector space.

    They are of the same weights and tokenizer, and read texts and pool vectors in the same way.
    """
    pairs = {
        "weights": (there.model.weights_sha256, here.model.weights_sha256),
        "tokenizer": (there.text.tokenizer, here.text.tokenizer),
        "pooling": (there.pooling.value, here.pooling.value),
        "normalisation": (there.normalize.value, here.normalize.value),
        "most tokens": (there.text.max_tokens, here.text.max_tokens),
        "lower case": (there.text.lower_case, here.text.lower_case),
        "prompts": (there.text.prompts, here.text.prompts),
        "default prompt": (there.text.default_prompt_name, here.text.default_prompt_name),
    }
    if differing := [f"{what} {a} there, {b} here" for what, (a, b) in pairs.items() if a != b]:
        raise BundleError(
            folder,
            f"holds a bundle of {there.model.id}, and this checkpoint ({here.model.id}) differs: "
            f"{'; '.join(differing)}. Name the checkpoint that it was made from (its tokenizer by --tokenizer), or "
            "export this one into another folder",
        )


def _version() -> str:
    try:
        return importlib.metadata.version("mexma-runtime")
    except importlib.metadata.PackageNotFoundError:
        return "not installed but run from its source"
