"""Plans beside a bundle: compiled by TensorRT for one GPU, or by TensorRT for RTX for chosen compute capabilities.

Each is for one version of its library too, so they lie in local/, outside the hashes. A plan is described by a JSON
file of its engine's name. `mexma build BUNDLE --target tensorrt` (or `tensorrt-rtx`) builds both.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar, TypeAlias

from mexma_runtime.bundle.manifest import LOCAL, EngineEntry, PositionScheme
from mexma_runtime.bundle.strict_json import Check, read_document
from mexma_runtime.errors import BundleError, EngineUnavailableError
from mexma_runtime.types import Pooling, Precision

SCHEMA = 1
MAX_LISTED = 10
"""Plans for others, in an error."""
LAYERS = ".layers.json"
"""How the file beside a plan ends that has the inspector's output, and is no description of a plan."""


class HardwareCompatibility(StrEnum):
    """Which other GPUs may run a plan, as TensorRT's HardwareCompatibilityLevel has it."""

    NONE = "none"
    """Those of the same name."""
    SAME_CAPABILITY = "same-capability"
    """Those of the same compute capability."""
    AMPERE_PLUS = "ampere-plus"
    """Ampere and all later ones: the slowest plan."""


@dataclass(frozen=True, kw_only=True)
class Platform:
    """What TensorRT builds a plan for."""

    library: ClassVar[str] = "tensorrt"
    """The backend that runs such plans, and the folder in local/ that they lie in."""
    title: ClassVar[str] = "TensorRT"

    gpu: str
    """Its name, as CUDA gives it."""
    capability: str
    """Compute capability: `9.0`."""
    tensorrt: str
    """Version, to the last digit: plans of another are not compatible."""

    def __str__(self) -> str:
        return f"{self.gpu} (compute capability {self.capability}) with TensorRT {self.tensorrt}"

    @property
    def folder_name(self) -> str:
        """Letters, digits and hyphens: `nvidia-h200-sm90-trt10.16.1.11`."""
        return f"{words_of(self.gpu)}-{_sm(self.capability)}-trt{self.tensorrt}"


@dataclass(frozen=True, kw_only=True)
class RtxPlatform:
    """What TensorRT for RTX builds a plan for, whichever machine it builds it on."""

    library: ClassVar[str] = "tensorrt-rtx"
    """The backend that runs such plans, and the folder in local/ that they lie in."""
    title: ClassVar[str] = "TensorRT for RTX"

    capabilities: list[str]
    """Compute capabilities, the least first: `["8.6", "8.9", "12.0"]`; where a plan is to run, the GPU's."""
    tensorrt_rtx: str
    """Version, to the last digit: plans of another are not compatible."""

    def __str__(self) -> str:
        return f"compute capability {', '.join(self.capabilities)} with TensorRT for RTX {self.tensorrt_rtx}"

    @property
    def folder_name(self) -> str:
        """Letters, digits and hyphens: `sm86-sm89-sm120-rtx1.7.1.116`."""
        return f"{'-'.join(map(_sm, self.capabilities))}-rtx{self.tensorrt_rtx}"


AnyPlatform: TypeAlias = Platform | RtxPlatform


def words_of(gpu: str) -> str:
    """A GPU's name as a file's: letters, digits and hyphens."""
    return "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in gpu.lower()).split())


def _sm(capability: str) -> str:
    return f"sm{capability.replace('.', '')}"


@dataclass(frozen=True, kw_only=True)
class Range:
    """The sizes of one dimension that a profile takes."""

    least: int
    best: int
    """What kernels are chosen for."""
    most: int


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Shapes that a plan has kernels for."""

    name: str
    n_sentences: Range
    longest: Range
    """Tokens of the longest sentence, to which all are padded."""

    def holds(self, n_sentences: int, longest: int) -> bool:
        """Whether a batch of so many sentences, padded to so many tokens, may run by this profile."""
        return (
            self.n_sentences.least <= n_sentences <= self.n_sentences.most
            and self.longest.least <= longest <= self.longest.most
        )


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or the output of a plan."""

    name: str
    dtype: str
    shape: list[int | str]
    """Numbers, and names of what differs from run to run."""
    meaning: str


@dataclass(frozen=True, kw_only=True)
class TextRules:
    """What has to be known to make inputs from text; tokenizer.json of the bundle gives the ids."""

    max_tokens: int
    padding_id: int
    position_scheme: PositionScheme
    pooling: Pooling
    is_normalized: bool
    """Whether the checkpoint's own vectors have length 1; the plan's output is as pooled."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All of a plan's JSON file."""

    schema: int
    writer: str
    engine: str
    """Name of the bundle's engine that it was built from."""
    graph: str
    """File name of that engine's graph, which has its hash."""
    precision: Precision
    target: AnyPlatform
    compatibility: HardwareCompatibility | None
    """None: a plan for RTX, which runs on its capabilities alone."""
    profiles: Annotated[list[Profile], Check(expected="one or more", holds=bool)]
    """In the plan's order."""
    inputs: list[Tensor]
    output: Tensor
    text: TextRules
    file: str
    """The plan itself, beside this file."""
    size: int
    """Bytes of it."""
    sha256: str

    @property
    def max_batch_tokens(self) -> int:
        """Tokens, padding included, of the largest batch that a profile holds."""
        return max(profile.n_sentences.most * profile.longest.most for profile in self.profiles)

    @property
    def max_batch_rows(self) -> int:
        """Sentences of the batch with the most."""
        return max(profile.n_sentences.most for profile in self.profiles)

    @property
    def breadth(self) -> int:
        """Larger where more kinds of GPU may run it: of two plans the narrower is the faster."""
        if isinstance(self.target, RtxPlatform):
            return len(self.target.capabilities)
        return [None, *HardwareCompatibility].index(self.compatibility)

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    def runs_on(self, platform: AnyPlatform) -> bool:
        """Whether it may be opened there."""
        target = self.target
        if isinstance(target, RtxPlatform) or isinstance(platform, RtxPlatform):
            return (
                isinstance(target, RtxPlatform)
                and isinstance(platform, RtxPlatform)
                and target.tensorrt_rtx == platform.tensorrt_rtx
                and set(platform.capabilities) <= set(target.capabilities)
            )
        if target.tensorrt != platform.tensorrt:
            return False
        if self.compatibility is HardwareCompatibility.AMPERE_PLUS:
            return int(platform.capability.partition(".")[0]) >= AMPERE
        if self.compatibility is HardwareCompatibility.SAME_CAPABILITY:
            return target.capability == platform.capability
        return (target.gpu, target.capability) == (platform.gpu, platform.capability)


AMPERE = 8
"""Compute capability's first number."""


def plans_folder(folder: Path, platform: AnyPlatform) -> Path:
    """Where the bundle in `folder` keeps plans for `platform`."""
    return folder / LOCAL / platform.library / platform.folder_name


def read_plan(path: Path) -> Plan:
    """The plan that the JSON file `path` describes; BundleError where it cannot be read."""
    plan = read_document(Plan, path, schema=SCHEMA, advice="remove it, and build the plan again")
    assert isinstance(plan, Plan)
    if not re.fullmatch(r"[\w.-]*\w", plan.file):
        raise BundleError(path, f"file name {plan.file!r} leaves the folder: refused")
    return plan


def find_plan(folder: Path, engine: EngineEntry, platform: AnyPlatform) -> tuple[Plan, Path]:
    """The plan of `engine` in the bundle's `folder` that may run on `platform`, and where it lies.

    EngineUnavailableError says what plans there are instead, and the command that builds one here; BundleError where
    the one there is damaged.
    """
    fitting, others, damaged = [], [], list[BundleError]()
    for path in sorted(plans_folder(folder, platform).parent.glob(f"*/{engine.name}.json")):
        try:
            plan = read_plan(path)
        except BundleError as error:
            damaged.append(error)
            continue
        if plan.graph == engine.file and plan.runs_on(platform):
            fitting.append((plan, path.parent / plan.file))
        others.append(str(plan.target) + ("" if plan.graph == engine.file else ", from an older export of the engine"))
    if fitting:
        plan, path = min(fitting, key=lambda found: found[0].breadth)
        return plan, _checked(path, plan)
    if damaged:
        raise damaged[0]
    more = f" and {len(others) - MAX_LISTED} more" if len(others) > MAX_LISTED else ""
    there = f"there are plans for {'; '.join(others[:MAX_LISTED])}{more}" if others else "there is none"
    raise EngineUnavailableError(
        f"{folder}: no {platform.title} plan of engine {engine.name} for {platform}; {there}. Build one"
        f"{_where(platform)}: {build_command(folder, engine, platform)}"
    )


def build_command(folder: Path, engine: EngineEntry, platform: AnyPlatform) -> str:
    """What builds a plan of `engine` for `platform`."""
    command = f"mexma build {shlex.quote(str(folder))} --target {platform.library} --engine {engine.name}"
    if isinstance(platform, RtxPlatform):
        command += "".join(f" --capability {capability}" for capability in platform.capabilities)
    return command


def _where(platform: AnyPlatform) -> str:
    return ", on any machine" if isinstance(platform, RtxPlatform) else " on this machine"


def _checked(path: Path, plan: Plan) -> Path:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BundleError(path, f"cannot be read: {error.strerror}: build the plan again") from None
    if size != plan.size:
        raise BundleError(path, f"expected {plan.size} bytes, got {size}: build the plan again")
    return path
