"""What `mexma build` makes of a bundle: TensorRT plans, bare or in the bundle, and a Triton repository."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mexma_export.bundle.staging import Staging
from mexma_runtime.backends import plan_platform
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.companions import with_companions
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.bundle.plans import HardwareCompatibility, find_plan
from mexma_runtime.errors import UsageError
from mexma_runtime.terminal import Progress
from mexma_runtime.types import Precision


class BuildTarget(StrEnum):
    """What is built."""

    TENSORRT = "tensorrt"
    """Plans for this machine's GPU, in the bundle's local/."""
    PLAN = "plan"
    """A bare plan and the JSON that describes it."""
    TRITON = "triton"
    """A model repository for Triton Inference Server."""
    SENTENCE_TRANSFORMERS = "sentence-transformers"
    """The files that make the bundle a model of that library, which older bundles lack."""


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """What is asked for beside a bundle."""

    target: BuildTarget
    device: str | None = None
    """The GPU that plans are for: `cuda`, `cuda:1`; None: `cuda`."""
    precisions: tuple[Precision, ...] = ()
    """Of the bundle's engines; none: all that the target takes."""
    engine: str | None = None
    profiles: tuple[str, ...] = ()
    """None: the default ones."""
    compatibility: HardwareCompatibility = HardwareCompatibility.NONE
    out: Path | None = None
    """Where a bare plan or a model repository goes."""
    name: str = "mexma"
    """Of Triton's model."""
    over_tensorrt: bool = False
    """Whether Triton serves a plan, not a graph."""

    def check(self) -> None:
        """UsageError for what does not go together; what this machine lacks for a plan is told before any work."""
        target = self.target
        if self.out is None and target in (BuildTarget.PLAN, BuildTarget.TRITON):
            raise UsageError("--out FOLDER is needed: where to write")
        if self.out is not None and target is BuildTarget.TENSORRT:
            raise UsageError("--out: plans of a bundle go into its local/; --target plan writes them elsewhere")
        if target is BuildTarget.SENTENCE_TRANSFORMERS:
            options = {
                "--out": self.out,
                "--precision": self.precisions,
                "--device": self.device,
                "--engine": self.engine,
            }
            if given := [name for name, value in options.items() if value not in (None, ())]:
                raise UsageError(
                    f"{', '.join(given)}: without meaning for --target {target}, whose files are the whole bundle's "
                    "and go into it: leave out"
                )
        is_plan = target in (BuildTarget.TENSORRT, BuildTarget.PLAN)
        if (self.profiles or self.compatibility is not HardwareCompatibility.NONE) and not is_plan:
            raise UsageError("--profile and --hardware-compatible are for --target tensorrt or plan")
        if self.over_tensorrt and target is not BuildTarget.TRITON:
            raise UsageError("--over-tensorrt is for --target triton")
        if not re.fullmatch(r"\w[\w.-]*", self.name, re.ASCII):
            raise UsageError(f"--name: expected letters, digits, ., - and _, got {self.name!r}")
        if is_plan:
            plan_platform(self.gpu)

    @property
    def gpu(self) -> str:
        """The device that plans are for."""
        return "cuda" if self.device is None else self.device


def make_target(folder: Path, options: TargetOptions, *, progress: Progress) -> list[str]:
    """Make what `options` ask for from the bundle in `folder`; a line for each thing made.

    Raises what keeps this machine from it: no TensorRT, no GPU, no engine that the target takes.
    """
    if options.target is BuildTarget.SENTENCE_TRANSFORMERS:
        return [_companions(folder)]
    if options.target is BuildTarget.TRITON:
        return [_triton(Bundle.open(folder), options)]
    return _plans(folder, options, progress)


def _plans(folder: Path, options: TargetOptions, progress: Progress) -> list[str]:
    from mexma_export.targets.tensorrt.build import BuildOptions, build_plans, engines_for_tensorrt
    from mexma_export.targets.tensorrt.profiles import DEFAULT_SPECS

    platform = plan_platform(options.gpu)
    bundle = Bundle.open(folder)
    engines = engines_for_tensorrt(bundle, precisions=options.precisions, engine=options.engine)
    how = BuildOptions(
        platform=platform,
        profiles=options.profiles or DEFAULT_SPECS,
        compatibility=options.compatibility,
        out=options.out if options.target is BuildTarget.PLAN else None,
    )
    return [
        f"{plan.engine} for {plan.target}: {path} ({plan.size / 1e6:,.0f} MB), profiles "
        f"{', '.join(profile.name for profile in plan.profiles)}"
        for plan, path in build_plans(bundle, engines, how, progress=progress)
    ]


def _companions(folder: Path) -> str:
    """Publish the bundle as it is, with its companions."""
    Bundle.open(folder)
    with Staging(folder) as staging:
        assert staging.previous
        staging.publish(with_companions(staging.previous))
    return f"{folder}: SentenceTransformer({str(folder)!r}, trust_remote_code=True) opens it"


def _triton(bundle: Bundle, options: TargetOptions) -> str:
    from mexma_export.targets.tensorrt.build import engines_for_tensorrt
    from mexma_export.targets.triton import choose_engine, write_onnxruntime_model, write_tensorrt_model

    if options.out is None:
        raise UsageError("--target triton writes a model repository: say where by --out FOLDER")
    if not options.over_tensorrt:
        entry = choose_engine(bundle, precisions=options.precisions, engine=options.engine)
        made = write_onnxruntime_model(bundle, entry, options.out, name=options.name)
        return f"{made}: {entry.name} for Triton's onnxruntime backend; token ids in, vectors out"
    platform = plan_platform(options.gpu)
    entry = _only(engines_for_tensorrt(bundle, precisions=options.precisions, engine=options.engine))
    plan, path = find_plan(bundle.folder, entry, platform)
    made = write_tensorrt_model(bundle, plan, path, options.out, name=options.name)
    return f"{made}: {entry.name} for Triton's TensorRT backend on {platform}; padded ids, mask and positions in"


def _only(entries: Sequence[EngineEntry]) -> EngineEntry:
    if len(entries) > 1:
        raise UsageError("several engines fit: name one by --engine")
    return entries[0]
