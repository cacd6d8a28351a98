"""What `mexma build` makes of a bundle: TensorRT plans, bare or in the bundle, and a Triton repository."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mexma_export.bundle.staging import Staging
from mexma_export.targets.tensorrt.capabilities import capability_groups, require_capabilities
from mexma_runtime.backends import plan_platform, rtx_platform
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.companions import with_companions
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.bundle.plans import HardwareCompatibility, Plan, find_plan
from mexma_runtime.errors import UsageError
from mexma_runtime.terminal import Progress
from mexma_runtime.types import Precision


class BuildTarget(StrEnum):
    """What is built."""

    TENSORRT = "tensorrt"
    """Plans for this machine's GPU, in the bundle's local/."""
    TENSORRT_RTX = "tensorrt-rtx"
    """Plans for RTX GPUs of some compute capabilities, in the bundle's local/; built on any machine."""
    PLAN = "plan"
    """A bare plan and the JSON that describes it."""
    TRITON = "triton"
    """A model repository for Triton Inference Server."""
    SENTENCE_TRANSFORMERS = "sentence-transformers"
    """The files that make the bundle a model of that library, which older bundles lack."""


MODEL_NAME = "mexma"
"""Of Triton's model, unless another is asked for."""
_PLANS = (BuildTarget.TENSORRT, BuildTarget.PLAN)
_OF_ENGINES = (*_PLANS, BuildTarget.TENSORRT_RTX, BuildTarget.TRITON)
OPTIONS: Mapping[str, tuple[BuildTarget, ...]] = {
    "--out": (BuildTarget.PLAN, BuildTarget.TRITON),
    "--precision": _OF_ENGINES,
    "--engine": _OF_ENGINES,
    "--device": (*_PLANS, BuildTarget.TRITON),
    "--capability": (BuildTarget.TENSORRT_RTX,),
    "--profile": (*_PLANS, BuildTarget.TENSORRT_RTX),
    "--hardware-compatible": _PLANS,
    "--over-tensorrt": (BuildTarget.TRITON,),
    "--name": (BuildTarget.TRITON,),
}
"""Which targets an option is for."""


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """What is asked for beside a bundle."""

    target: BuildTarget
    device: str | None = None
    """The GPU that plans are for: `cuda`, `cuda:1`; None: `cuda`."""
    capabilities: tuple[str, ...] = ()
    """Compute capabilities that plans for RTX are for; none: the default ones."""
    precisions: tuple[Precision, ...] = ()
    """Of the bundle's engines; none: all that the target takes."""
    engine: str | None = None
    profiles: tuple[str, ...] = ()
    """None: the default ones."""
    compatibility: HardwareCompatibility = HardwareCompatibility.NONE
    out: Path | None = None
    """Where a bare plan or a model repository goes."""
    name: str | None = None
    """Of Triton's model; None: MODEL_NAME."""
    over_tensorrt: bool = False
    """Whether Triton serves a plan, not a graph."""

    def check(self) -> None:
        """UsageError for what does not go together; what this machine lacks for a plan is told before any work."""
        given = {
            "--out": self.out,
            "--precision": self.precisions,
            "--engine": self.engine,
            "--device": self.device,
            "--capability": self.capabilities,
            "--profile": self.profiles,
            "--hardware-compatible": self.compatibility is not HardwareCompatibility.NONE,
            "--over-tensorrt": self.over_tensorrt,
            "--name": self.name is not None,
        }
        for option, value in given.items():
            if value and self.target not in OPTIONS[option]:
                raise UsageError(
                    f"{option} is for --target {' or '.join(OPTIONS[option])}, and {self.target} was asked for: "
                    "leave it out"
                )
        if self.out is None and self.target in OPTIONS["--out"]:
            raise UsageError("--out FOLDER is needed: where to write")
        if self.name is not None and not re.fullmatch(r"\w[\w.-]*", self.name, re.ASCII):
            raise UsageError(f"--name: expected letters, digits, ., - and _, got {self.name!r}")
        if self.target in (BuildTarget.TENSORRT, BuildTarget.PLAN):
            plan_platform(self.gpu)
        if self.target is BuildTarget.TENSORRT_RTX:
            rtx_platform(require_capabilities(self.capabilities))

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
    if options.target is BuildTarget.TENSORRT_RTX:
        return _rtx_plans(Bundle.open(folder), options, progress)
    return _plans(Bundle.open(folder), options, progress)


def _plans(bundle: Bundle, options: TargetOptions, progress: Progress) -> list[str]:
    from mexma_export.targets.tensorrt.build import BuildOptions, build_plans, engines_for_tensorrt
    from mexma_export.targets.tensorrt.profiles import DEFAULT_SPECS

    platform = plan_platform(options.gpu)
    engines = engines_for_tensorrt(bundle, precisions=options.precisions, engine=options.engine)
    how = BuildOptions(
        platform=platform,
        device=options.gpu,
        profiles=options.profiles or DEFAULT_SPECS,
        compatibility=options.compatibility,
        out=options.out if options.target is BuildTarget.PLAN else None,
    )
    return [described(plan, path) for plan, path in build_plans(bundle, engines, how, progress=progress)]


def _rtx_plans(bundle: Bundle, options: TargetOptions, progress: Progress) -> list[str]:
    """Plans of each engine for the capabilities that run it, and a line for those that do not.

    UsageError where none of them runs any engine.
    """
    from mexma_export.targets.tensorrt.build import BuildOptions, build_plans, engines_for_tensorrt
    from mexma_export.targets.tensorrt.profiles import DEFAULT_SPECS

    made, left_out = [], []
    for entry in engines_for_tensorrt(bundle, precisions=options.precisions, engine=options.engine):
        groups, others = capability_groups(entry.precision, options.capabilities)
        for group in groups:
            how = BuildOptions(platform=rtx_platform(group), profiles=options.profiles or DEFAULT_SPECS)
            made += [described(plan, path) for plan, path in build_plans(bundle, [entry], how, progress=progress)]
        if others:
            left_out.append(f"{entry.name}: not for {', '.join(others)}, which has no {entry.precision}")
    if not made:
        raise UsageError(f"--capability: nothing was built. {'; '.join(left_out)}")
    return made + left_out


def described(plan: Plan, path: Path) -> str:
    """A line for a plan that was made."""
    profiles = ", ".join(profile.name for profile in plan.profiles)
    return f"{plan.engine} for {plan.target}: {path} ({plan.size / 1e6:,.0f} MB), profiles {profiles}"


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
        made = write_onnxruntime_model(bundle, entry, options.out, name=options.name or MODEL_NAME)
        return f"{made}: {entry.name} for Triton's onnxruntime backend; token ids in, vectors out"
    platform = plan_platform(options.gpu)
    entry = _only(engines_for_tensorrt(bundle, precisions=options.precisions, engine=options.engine))
    plan, path = find_plan(bundle.folder, entry, platform)
    made = write_tensorrt_model(bundle, plan, path, options.out, name=options.name or MODEL_NAME)
    return f"{made}: {entry.name} for Triton's TensorRT backend on {platform}; padded ids, mask and positions in"


def _only(entries: Sequence[EngineEntry]) -> EngineEntry:
    if len(entries) > 1:
        raise UsageError("several engines fit: name one by --engine")
    return entries[0]
