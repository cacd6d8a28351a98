"""A recipe: which products are quantized how, and what the search may try. JSON, checked as a whole when it is read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from mexma_runtime.bundle.manifest import GROUP_STEP, ProductMode
from mexma_runtime.errors import UsageError
from mexma_runtime.types import PADDED_DIALECTS, Dialect, Precision

SCHEMA = 2
"""History: 2 has the field's own words (`_SCHEMA_1` are those before); 1 was the first."""
FOR_CPUS, FOR_TENSORRT = ("fast", "precise"), "tensorrt"
SHIPPED = (*FOR_CPUS, FOR_TENSORRT)
FLOATS = (Precision.FP32, Precision.FP16)
MAX_CHOICES = 64
"""Most alphas or clip ratios to choose from: each costs a pass over a sample of every product's input."""
MAX_STEPS = 1000
"""Of gradient descent: each costs about as much."""


class Rounding(StrEnum):
    """How weights become integers."""

    NEAREST = "nearest"
    """Each to the integer next to it."""
    GPTQ = "gptq"
    """GPTQ (Frantar et al., 2022, arXiv:2210.17323): what rounding one input channel changes, the next ones make up."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is quantized; `load_recipe` reads one."""

    name: str
    weight_bits: int
    """8, or 7: for processors without VNNI, where sums of two products of 8 bits saturate."""
    group_size: int
    """Input channels that share a scale in products of mode `group`."""
    modes: Mapping[Dialect, Mapping[str, ProductMode]]
    """Dialect -> pattern (`layer.*.ffn.down`) -> mode; the last pattern that fits a product decides. Engines are
    written in these dialects alone.

    `group` is for the portable dialect alone: OpenVINO finds such scales, onnxruntime does not.
    """
    smoothquant_alphas: tuple[float, ...]
    """SmoothQuant's alphas to choose from, for each linear group (Xiao et al., 2022, arXiv:2211.10438); empty: none."""
    smoothing_refinement_steps: int
    """Of gradient descent on each channel's own smoothing scale, from the best alpha; 0: none."""
    head_transforms: bool
    """Whether the channels of each head's output are made alike by a matrix a head, in the weights around it."""
    split_channel_share: float
    """FFN channels to split as outlier channels (Zhao et al., 2019, arXiv:1901.09504), as a share of all."""
    clip_ratios: tuple[float, ...]
    """Shares of the range seen in calibration to choose from, 1: all of it."""
    channel_shift: tuple[Dialect, ...]
    """Dialects in which each channel's range may be moved around zero: free in OpenVINO, an addition in onnxruntime."""
    rounding: Rounding
    correct_bias: bool
    """Whether the mean error of each product's output is taken out by its bias."""
    floats: Precision
    """What is not quantized: fp32 for CPUs; fp16 for TensorRT, which takes symmetric integers, or floats of 8 bits."""

    @property
    def is_for_tensorrt(self) -> bool:
        """Whether what it makes is for TensorRT: symmetric, around fp16."""
        return self.floats is Precision.FP16

    @property
    def float_dtype(self) -> np.dtype[Any]:
        """NumPy's type of `floats`."""
        return np.dtype(np.float16 if self.floats is Precision.FP16 else np.float32)

    @property
    def sha256(self) -> str:
        """Of all fields."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The recipe as its file has it."""
        return {"schema": SCHEMA, **{name: getattr(self, name) for name in self.__dataclass_fields__}}

    def mode(self, dialect: Dialect, group: str) -> ProductMode:
        """How `group` is quantized in `dialect`."""
        fitting = [mode for pattern, mode in self.modes[dialect].items() if fnmatchcase(group, pattern)]
        return fitting[-1]

    def has_groups(self, group: str) -> bool:
        """Whether channels of `group` share scales by groups, as they may in the portable dialect alone."""
        return Dialect.PORTABLE in self.modes and self.mode(Dialect.PORTABLE, group) is ProductMode.GROUP

    def group_size_for(self, *widths: int) -> int:
        """Channels that share a scale where products read `widths`: as many of `group_size` as divide all."""
        return math.gcd(self.group_size, *widths)

    def check(self, groups: Sequence[str]) -> None:
        """UsageError that names each pattern that fits none of the model's `groups`, and groups that none fits."""
        problems = []
        for dialect, modes in self.modes.items():
            for pattern in modes:
                if not any(fnmatchcase(group, pattern) for group in groups):
                    problems.append(f"modes.{dialect}: {pattern!r} fits no product of this model")
            if missing := [g for g in groups if not any(fnmatchcase(g, pattern) for pattern in modes)]:
                problems.append(f"modes.{dialect}: no pattern fits {missing[0]} and {len(missing) - 1} others")
        if problems:
            first, last = groups[0], groups[-1]
            raise _refused(self.name, [*problems, f"its products are called {first} to {last}"])


def load_recipe(name_or_path: str) -> Recipe:
    """A shipped recipe by its name, or one of a JSON file; UsageError lists all that is wrong with it."""
    if name_or_path in SHIPPED:
        text = (files("mexma_export") / "data" / "recipes" / f"{name_or_path}.json").read_text(encoding="utf-8")
        return parse_recipe(text, where=name_or_path)
    path = Path(name_or_path)
    if not path.is_file():
        raise UsageError(f"recipe {name_or_path!r}: neither a file nor one of {', '.join(SHIPPED)}")
    try:
        return parse_recipe(path.read_text(encoding="utf-8"), where=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path}: cannot be read as UTF-8: {error}") from None


def parse_recipe(text: str, *, where: str) -> Recipe:
    """The recipe in JSON `text`; UsageError names `where` and all problems."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UsageError(f"recipe {where}: not JSON: {error}") from None
    if isinstance(data, dict) and type(data.get("schema")) is int and data["schema"] == 1:
        data = _upgraded(data)
    fields = set(Recipe.__dataclass_fields__) | {"schema"}
    if not isinstance(data, dict) or data.keys() != fields:
        there = set(data) if isinstance(data, dict) else set()
        lacking, unknown = ", ".join(sorted(fields - there)), ", ".join(sorted(there - fields))
        raise _refused(where, [f"missing fields: {lacking or 'none'}; unknown fields: {unknown or 'none'}"])
    problems = [
        f"{name}: expected {expected}, got {json.dumps(data[name])}"
        for name, (expected, holds) in _EXPECTED.items()
        if not holds(data[name])
    ]
    if not problems and data["floats"] == Precision.FP16:
        if data["modes"].keys() != {Dialect.PORTABLE}:
            problems.append("floats: fp16 is for TensorRT, which takes the portable dialect: leave others out of modes")
        if ProductMode.GROUP in data["modes"].get(Dialect.PORTABLE, {}).values():
            problems.append("modes: scales a group are found by OpenVINO, not by TensorRT: static, token or float")
    if problems:
        raise _refused(where, problems)
    modes = {Dialect(d): {pattern: ProductMode(m) for pattern, m in of.items()} for d, of in data["modes"].items()}
    return Recipe(
        name=data["name"],
        weight_bits=data["weight_bits"],
        group_size=data["group_size"],
        modes=modes,
        smoothquant_alphas=tuple(map(float, data["smoothquant_alphas"])),
        smoothing_refinement_steps=data["smoothing_refinement_steps"],
        head_transforms=data["head_transforms"],
        split_channel_share=float(data["split_channel_share"]),
        clip_ratios=tuple(map(float, data["clip_ratios"])),
        channel_shift=tuple(map(Dialect, data["channel_shift"])),
        rounding=Rounding(data["rounding"]),
        correct_bias=data["correct_bias"],
        floats=Precision(data["floats"]),
    )


_SCHEMA_1 = {
    "migrations": "smoothquant_alphas",
    "refinement_steps": "smoothing_refinement_steps",
    "copied_share": "split_channel_share",
    "clippings": "clip_ratios",
    "shifted": "channel_shift",
}
"""Field of schema 1 -> the same in schema 2."""


def _upgraded(data: dict[str, Any]) -> dict[str, Any]:
    """A recipe of schema 1 as schema 2 has it; what is neither is left as it is, to be refused."""
    if data.keys() & set(_SCHEMA_1.values()):
        return data
    data = {_SCHEMA_1.get(name, name): value for name, value in data.items()}
    rounding = Rounding.GPTQ if data.get("rounding") == "compensated" else data.get("rounding")
    return {**data, "rounding": rounding, "schema": SCHEMA}


_MODES: dict[Dialect, list[Any]] = {
    Dialect.PORTABLE: list(ProductMode),
    Dialect.FUSED: [mode for mode in ProductMode if mode is not ProductMode.GROUP],
}


def _is_shares(values: Any, lowest: float) -> bool:
    return (
        isinstance(values, list)
        and len(values) <= MAX_CHOICES
        and all(type(value) in (int, float) and lowest <= value <= 1 for value in values)
    )


def _is_modes(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and value.keys() <= set(PADDED_DIALECTS)
        and all(
            isinstance(of, dict) and of and all(mode in _MODES[Dialect(dialect)] for mode in of.values())
            for dialect, of in value.items()
        )
    )


_EXPECTED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "schema": (f"{SCHEMA}", lambda v: v == SCHEMA and type(v) is int),
    "name": (
        "letters, digits and hyphens",
        lambda v: isinstance(v, str) and v.isascii() and v.replace("-", "").isalnum(),
    ),
    "weight_bits": ("8 or 7", lambda v: type(v) is int and v in (7, 8)),
    "group_size": (f"a multiple of {GROUP_STEP}", lambda v: type(v) is int and v > 0 and v % GROUP_STEP == 0),
    "modes": (
        f"for one or both of {', '.join(PADDED_DIALECTS)} an object of pattern -> {', '.join(ProductMode)}; no "
        "group in fused",
        _is_modes,
    ),
    "smoothquant_alphas": (f"at most {MAX_CHOICES} numbers from 0 to 1", lambda v: _is_shares(v, 0)),
    "smoothing_refinement_steps": (
        f"a whole number from 0 to {MAX_STEPS}",
        lambda v: type(v) is int and 0 <= v <= MAX_STEPS,
    ),
    "head_transforms": ("true or false", lambda v: type(v) is bool),
    "split_channel_share": ("a number from 0 to 1", lambda v: type(v) in (int, float) and 0 <= v <= 1),
    "clip_ratios": (f"1 to {MAX_CHOICES} numbers from 0.1 to 1", lambda v: _is_shares(v, 0.1) and v),
    "channel_shift": (
        f"a list of {', '.join(PADDED_DIALECTS)}",
        lambda v: isinstance(v, list) and all(d in PADDED_DIALECTS for d in v),
    ),
    "rounding": (f"one of {', '.join(Rounding)}", lambda v: v in list(Rounding)),
    "correct_bias": ("true or false", lambda v: type(v) is bool),
    "floats": (" or ".join(FLOATS), lambda v: v in list(FLOATS)),
}
"""Field -> what it must be, in words and as a check."""


def _refused(where: str, problems: Sequence[str]) -> UsageError:
    return UsageError(f"recipe {where}:\n" + "\n".join(f"  - {problem}" for problem in problems))
