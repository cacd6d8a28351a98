"""Plans of a bundle's engines: built, described, and published by one rename each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from mexma_export.targets.tensorrt.builder import build
from mexma_export.targets.tensorrt.ep_context import ep_context_model
from mexma_export.targets.tensorrt.plan_folder import TIMING_CACHE, PlanFolder
from mexma_export.targets.tensorrt.plan_targets import RtxGpus, Target, ThisGpu
from mexma_export.targets.tensorrt.profiles import parse_profiles
from mexma_runtime.bundle.bundle import Bundle, content_name
from mexma_runtime.bundle.manifest import EngineEntry, Manifest
from mexma_runtime.bundle.plans import (
    SCHEMA,
    AnyPlatform,
    HardwareCompatibility,
    Plan,
    Profile,
    RtxPlatform,
    Tensor,
    TextRules,
    plans_folder,
)
from mexma_runtime.bundle.rtx_capabilities import TURING
from mexma_runtime.bundle.whole_files import write_whole
from mexma_runtime.errors import EngineUnavailableError, MexmaError
from mexma_runtime.terminal import Progress
from mexma_runtime.types import Precision

MEANINGS = {
    "input_ids": "token ids, padded on the right with padding_id",
    "attention_mask": "1 for tokens, 0 for padding; at least one token in every row",
    "position_ids": "after_padding: padding_id + 1, + 2, ... over tokens whose id is not padding_id, and padding_id "
    "for others; from_zero: 0, 1, 2, ...; anything the position table has for padding",
}


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How plans are to be built."""

    platform: AnyPlatform
    device: str = "cuda"
    """Of TensorRT's plans: the GPU that kernels are measured on."""
    profiles: tuple[str, ...]
    """Specifications: `profiles.GRAMMAR`."""
    compatibility: HardwareCompatibility = HardwareCompatibility.NONE
    """Of TensorRT's plans."""
    out: Path | None = None
    """A folder for bare plans; None: the bundle's local/, where the runtime finds them."""


def engines_for_tensorrt(
    bundle: Bundle, *, precisions: Sequence[Precision], engine: str | None = None
) -> list[EngineEntry]:
    """The engines of `bundle` that TensorRT takes: of `precisions` (none: all), or the one of that name."""
    there = [entry for entry in bundle.manifest.engines if "tensorrt" in entry.requires]
    fitting = [
        entry for entry in there if (not precisions or entry.precision in precisions) and engine in (None, entry.name)
    ]
    if not fitting:
        wanted = ("" if engine is None else f" {engine!r}") + (f" in {' or '.join(precisions)}" if precisions else "")
        listed = ", ".join(entry.name for entry in there) or "none"
        raise EngineUnavailableError(
            f"{bundle.folder}: no engine{wanted} for TensorRT; those it has: {listed}. Add some from the checkpoint: "
            "mexma export SOURCE --out DIR --dialect portable --precision fp16, or --precision int8 (or fp8) --recipe "
            "tensorrt"
        )
    return fitting


def build_plans(
    bundle: Bundle, engines: Sequence[EngineEntry], options: BuildOptions, *, progress: Progress
) -> list[tuple[Plan, Path]]:
    """Build a plan of each of `engines`: what describes it, and where it lies.

    A plan takes the place of an older one when it is complete and TensorRT has opened it (that for RTX opens none where
    there is no GPU); a build that fails leaves the older one, and its log. MexmaError says what the library gave as its
    reason, and where the log is.
    """
    profiles = parse_profiles(options.profiles, max_tokens=bundle.manifest.text.max_tokens)
    cache = plans_folder(bundle.folder, options.platform)
    with PlanFolder(cache) as local, nullcontext(local) if options.out is None else PlanFolder(options.out) as folder:
        return [_build_plan(bundle, entry, profiles, options, folder, local.path, progress) for entry in engines]


def _build_plan(
    bundle: Bundle,
    entry: EngineEntry,
    profiles: list[Profile],
    options: BuildOptions,
    folder: PlanFolder,
    cache: Path,
    progress: Progress,
) -> tuple[Plan, Path]:
    platform, timing = options.platform, cache / TIMING_CACHE
    target: Target
    if isinstance(platform, RtxPlatform):
        target = RtxGpus(platform.capabilities)
    else:
        known = timing.read_bytes() if timing.exists() else b""
        target = ThisGpu(options.device, compatibility=options.compatibility, timing_cache=known)
    with folder.log(entry.name) as say:
        try:
            result = build(
                bundle.path(entry.file), entry.inputs, profiles, target, say=say, report=_named(progress, entry.name)
            )
        except MexmaError as error:
            log = folder.log_of(entry.name)
            told = f"{error}. All that {platform.title} said is in {log}; no plan was replaced"
            if isinstance(platform, RtxPlatform) and platform.capabilities == [TURING]:
                told += ". Graphs that pool the mean, exported before 0.1.0, are not for Turing: export again"
            raise MexmaError(told) from error
    if isinstance(target, ThisGpu):
        write_whole(timing, target.timing_cache)
    if result.layers is not None:
        folder.keep_layers(entry.name, result.layers)
    sha256 = hashlib.sha256(result.plan).hexdigest()
    plan = Plan(
        schema=SCHEMA,
        writer=bundle.manifest.writer,
        engine=entry.name,
        graph=entry.file,
        precision=entry.precision,
        target=platform,
        compatibility=None if isinstance(platform, RtxPlatform) else options.compatibility,
        profiles=profiles,
        inputs=[
            Tensor(name=name, dtype="int32", shape=["sentences", "longest"], meaning=MEANINGS[name])
            for name in entry.inputs
        ],
        output=Tensor(
            name=entry.output,
            dtype="float32",
            shape=["sentences", bundle.manifest.dim],
            meaning="a vector for each sentence, as pooled",
        ),
        text=_text_rules(bundle.manifest),
        file=f"{entry.name}.plan" if options.out else content_name(entry.name, sha256, "plan"),
        size=result.plan.nbytes,
        sha256=sha256,
    )
    path = folder.publish(plan, result.plan)
    if options.out and len(profiles) == 1:
        ir.save(ep_context_model(plan), folder.path / f"{entry.name}.onnx", format="protobuf")
    return plan, path


def _text_rules(manifest: Manifest) -> TextRules:
    return TextRules(
        max_tokens=manifest.text.max_tokens,
        padding_id=manifest.text.padding_id,
        position_scheme=manifest.text.position_scheme,
        pooling=manifest.pooling_mode,
        is_normalized=manifest.is_normalized,
    )


def _named(progress: Progress, name: str) -> Callable[[str, int, int], None]:
    return lambda phase, done, total: progress(f"{name}: {phase}", done, total)
