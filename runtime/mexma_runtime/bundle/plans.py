"""TensorRT plans beside a bundle: each is for one GPU and one TensorRT, so they lie in local/, outside the hashes.

A plan is described by a JSON file of the same name. `mexma build BUNDLE --target tensorrt` builds both.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mexma_runtime.bundle.manifest import LOCAL, EngineEntry, PositionScheme
from mexma_runtime.bundle.strict_json import read_document
from mexma_runtime.errors import BundleError, EngineUnavailableError
from mexma_runtime.types import Pooling, Precision

SCHEMA = 1
FOLDER = Path(LOCAL) / "tensorrt"
"""In the bundle's folder."""
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
    """What a plan is built for."""

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
        words = "".join(c if c.isascii() and c.isalnum() else " " for c in self.gpu.lower()).split()
        return f"{'-'.join(words)}-sm{self.capability.replace('.', '')}-trt{self.tensorrt}"


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
    target: Platform
    compatibility: HardwareCompatibility
    profiles: list[Profile]
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

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    def runs_on(self, platform: Platform) -> bool:
        """Whether it may be opened there."""
        if self.target.tensorrt != platform.tensorrt:
            return False
        if self.compatibility is HardwareCompatibility.NONE:
            return (self.target.gpu, self.target.capability) == (platform.gpu, platform.capability)
        if self.compatibility is HardwareCompatibility.SAME_CAPABILITY:
            return self.target.capability == platform.capability
        return int(platform.capability.partition(".")[0]) >= AMPERE


AMPERE = 8
"""Compute capability's first number."""


def read_plan(path: Path) -> Plan:
    """The plan that the JSON file `path` describes; BundleError where it cannot be read."""
    plan = read_document(Plan, path, schema=SCHEMA, advice="remove it, and build the plan again")
    assert isinstance(plan, Plan)
    if Path(plan.file).name != plan.file:
        raise BundleError(path, f"file name {plan.file!r} leaves the folder: refused")
    return plan


def find_plan(folder: Path, engine: EngineEntry, platform: Platform) -> tuple[Plan, Path]:
    """The plan of `engine` in the bundle's `folder` that may run on `platform`, and where it lies.

    EngineUnavailableError says what plans there are instead, and the command that builds one here; BundleError where
    the one there is damaged.
    """
    others = []
    for path in sorted((folder / FOLDER).glob("*/*.json")):
        if path.name.endswith(LAYERS):
            continue
        plan = read_plan(path)
        if plan.engine != engine.name:
            continue
        if plan.graph == engine.file and plan.runs_on(platform):
            return plan, _checked(path.parent / plan.file, plan)
        others.append(str(plan.target) + ("" if plan.graph == engine.file else ", from an older export of the engine"))
    there = f"there are plans for {'; '.join(others)}" if others else "there is none"
    raise EngineUnavailableError(
        f"{folder}: no TensorRT plan of engine {engine.name} for {platform}; {there}. Build one on this machine: "
        f"{build_command(folder, engine)}"
    )


def build_command(folder: Path, engine: EngineEntry) -> str:
    """What builds a plan of `engine` on the machine where it is run."""
    return f"mexma build {shlex.quote(str(folder))} --target tensorrt --engine {engine.name}"


def _checked(path: Path, plan: Plan) -> Path:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BundleError(path, f"cannot be read: {error.strerror}: build the plan again") from None
    if size != plan.size:
        raise BundleError(path, f"expected {plan.size} bytes, got {size}: build the plan again")
    return path
