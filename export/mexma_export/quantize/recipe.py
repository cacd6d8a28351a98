"""A recipe: which products are quantized how, and what the search may try. JSON, checked as a whole when it is read."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from mexma_runtime.bundle.manifest import GROUP_STEP, ProductMode
from mexma_runtime.bundle.strict_json import Check, MismatchError, loads, parse
from mexma_runtime.errors import FileError, UsageError
from mexma_runtime.types import FLOATS, PADDED_DIALECTS, Dialect, Precision

SCHEMA = 2
"""History: 2 has the field's own words (`_SCHEMA_1` are those before); 1 was the first."""
FOR_CPUS, FOR_TENSORRT = ("fast", "precise"), "tensorrt"
SHIPPED = (*FOR_CPUS, FOR_TENSORRT)
MAX_NAME = 100
"""Characters of a recipe's name: files of its engines have it in theirs."""
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


def _are_shares(values: Sequence[float], least: float) -> bool:
    return len(values) <= MAX_CHOICES and all(least <= value <= 1 for value in values)


def _are_modes(modes: Mapping[Dialect, Mapping[str, ProductMode]]) -> bool:
    is_fused_group = ProductMode.GROUP in modes.get(Dialect.FUSED, {}).values()
    return bool(modes) and all(modes.values()) and modes.keys() <= set(PADDED_DIALECTS) and not is_fused_group


_NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
_BOTH = ", ".join(PADDED_DIALECTS)
_NAME = Check(
    expected=f"at most {MAX_NAME} letters, digits and hyphens",
    holds=lambda name: len(name) <= MAX_NAME and name.isascii() and name.replace("-", "").isalnum(),
)
_BITS = Check(expected="8 or 7", holds=lambda bits: bits in (7, 8))
_GROUP = Check(expected=f"a multiple of {GROUP_STEP}", holds=lambda size: size > 0 and size % GROUP_STEP == 0)
_MODES = Check(
    expected=f"for one or both of {_BOTH} an object of pattern -> {', '.join(ProductMode)}; no group in fused",
    holds=_are_modes,
)
_ALPHAS = Check(expected=f"at most {MAX_CHOICES} numbers from 0 to 1", holds=lambda alphas: _are_shares(alphas, 0))
_STEPS = Check(expected=f"a whole number from 0 to {MAX_STEPS}", holds=lambda steps: 0 <= steps <= MAX_STEPS)
_SHARE = Check(expected="a number from 0 to 1", holds=lambda share: 0 <= share <= 1)
_RATIOS = Check(
    expected=f"1 to {MAX_CHOICES} numbers from 0.1 to 1", holds=lambda ratios: ratios and _are_shares(ratios, 0.1)
)
_SHIFT = Check(expected=f"a list of {_BOTH}", holds=lambda dialects: set(dialects) <= set(PADDED_DIALECTS))
_FLOATS = Check(expected=" or ".join(FLOATS), holds=lambda precision: precision in FLOATS)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is quantized; `load_recipe` reads one."""

    name: Annotated[str, _NAME]
    weight_bits: Annotated[int, _BITS]
    """8, or 7: for processors without VNNI, where sums of two products of 8 bits saturate."""
    group_size: Annotated[int, _GROUP]
    """Input channels that share a scale in products of mode `group`."""
    modes: Annotated[Mapping[Dialect, Mapping[str, ProductMode]], _MODES]
    """Dialect -> pattern (`layer.*.ffn.down`) -> mode; the last pattern that fits a product decides. Engines are
    written in these dialects alone.

    `group` is for the portable dialect alone: OpenVINO finds such scales, onnxruntime does not.
    """
    smoothquant_alphas: Annotated[tuple[float, ...], _ALPHAS]
    """SmoothQuant's alphas to choose from, for each linear group (Xiao et al., 2022, arXiv:2211.10438); empty: none."""
    smoothing_refinement_steps: Annotated[int, _STEPS]
    """Of gradient descent on each channel's own smoothing scale, from the best alpha; 0: none."""
    head_transforms: bool
    """Whether the channels of each head's output are made alike by a matrix a head, in the weights around it."""
    split_channel_share: Annotated[float, _SHARE]
    """FFN channels to split as outlier channels (Zhao et al., 2019, arXiv:1901.09504), as a share of all."""
    clip_ratios: Annotated[tuple[float, ...], _RATIOS]
    """Shares of the range seen in calibration to choose from, 1: all of it."""
    channel_shift: Annotated[tuple[Dialect, ...], _SHIFT]
    """Dialects in which each channel's range may be moved around zero: free in OpenVINO, an addition in onnxruntime."""
    rounding: Rounding
    correct_bias: bool
    """Whether the mean error of each product's output is taken out by its bias."""
    floats: Annotated[Precision, _FLOATS]
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
        """Hexadecimal sha256 of all fields."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The recipe as its file has it."""
        return {"schema": SCHEMA, **{name: getattr(self, name) for name in self.__dataclass_fields__}}

    def mode(self, dialect: Dialect, group: str) -> ProductMode:
        """How `group` is quantized in `dialect`."""
        fitting = [mode for pattern, mode in self.modes[dialect].items() if fnmatchcase(group, pattern)]
        return fitting[-1]

    def has_scale_groups(self, group: str) -> bool:
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
    """A shipped recipe by its name, or one of a JSON file; UsageError lists all that is wrong with it.

    FileError where the file cannot be read.
    """
    if name_or_path in SHIPPED:
        text = (files("mexma_export") / "data" / "recipes" / f"{name_or_path}.json").read_text(encoding="utf-8")
        return parse_recipe(text, where=name_or_path)
    path = Path(name_or_path)
    try:
        content = path.read_bytes()
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise FileError(path, "cannot be read", error) from None
        shown = name_or_path if len(name_or_path) <= MAX_NAME else f"{name_or_path[:MAX_NAME]}..."
        raise UsageError(f"recipe {shown!r}: neither a file nor one of {', '.join(SHIPPED)}") from None
    try:
        return parse_recipe(content.decode("utf-8"), where=str(path))
    except UnicodeDecodeError as error:
        raise UsageError(f"recipe {path}: cannot be read as UTF-8: {error}") from None


def parse_recipe(text: str, *, where: str) -> Recipe:
    """The recipe in JSON `text`; UsageError names `where` and all problems."""
    try:
        data = loads(text)
    except ValueError as error:
        raise UsageError(f"recipe {where}: not JSON: {error}") from None
    problems = []
    is_upgraded = False
    if isinstance(data, dict):
        if type(data.get("schema")) is int and data["schema"] == 1 and data.keys().isdisjoint(_SCHEMA_1.values()):
            data, is_upgraded = _upgraded(data), True
        schema = data.pop("schema", None)
        if type(schema) is not int or schema != SCHEMA:
            problems.append(f"schema: expected {SCHEMA}, got {json.dumps(schema)}")
    try:
        recipe: Recipe = parse(Recipe, data)
    except MismatchError as error:
        problems += error.problems
        raise _refused(where, _in_words_of_schema_1(problems) if is_upgraded else problems) from None
    if recipe.is_for_tensorrt:
        if recipe.modes.keys() != {Dialect.PORTABLE}:
            problems.append("floats: fp16 is for TensorRT, which takes the portable dialect: leave others out of modes")
        if ProductMode.GROUP in recipe.modes.get(Dialect.PORTABLE, {}).values():
            problems.append("modes: scales a group are found by OpenVINO, not by TensorRT: static, token or float")
    if problems:
        raise _refused(where, problems)
    return recipe


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
    data = {_SCHEMA_1.get(name, name): value for name, value in data.items()}
    rounding = Rounding.GPTQ if data.get("rounding") == "compensated" else data.get("rounding")
    return {**data, "rounding": rounding, "schema": SCHEMA}


def _in_words_of_schema_1(problems: Sequence[str]) -> list[str]:
    old = {new: name for name, new in _SCHEMA_1.items()}
    return [re.sub(r"\w+", lambda word: old.get(word[0], word[0]), problem) for problem in problems]


def _refused(where: str, problems: Sequence[str]) -> UsageError:
    return UsageError(f"recipe {where}:\n" + "\n".join(f"  - {problem}" for problem in problems))
