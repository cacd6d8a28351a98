from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mexma_export.checkpoint.checkpoint import Checkpoint
from mexma_export.graph.linear_groups import all_groups
from mexma_export.quantize.recipe import MAX_CHOICES, MAX_STEPS, SHIPPED, Recipe, Rounding, load_recipe, parse_recipe
from mexma_runtime.bundle.manifest import ProductMode
from mexma_runtime.errors import FileError, UsageError
from mexma_runtime.types import PADDED_DIALECTS, Dialect, Precision

FAST = load_recipe("fast")
GOLDEN = Path(__file__).parents[3] / "golden"


def changed(**fields: Any) -> str:
    return json.dumps(json.loads(json.dumps(FAST.to_json())) | fields)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_fit_every_model(name: str, checkpoint: Checkpoint) -> None:
    recipe = load_recipe(name)
    recipe.check(all_groups(checkpoint.config))
    assert recipe.name == name
    assert recipe.weight_bits == 8
    assert parse_recipe(json.dumps(recipe.to_json()), where="x") == recipe


def test_precise_finds_every_scale_while_it_computes(checkpoint: Checkpoint) -> None:
    precise = load_recipe("precise")
    modes = {precise.mode(dialect, group) for dialect in PADDED_DIALECTS for group in all_groups(checkpoint.config)}
    assert modes == {ProductMode.TOKEN, ProductMode.GROUP}


def test_the_hash_is_of_every_field() -> None:
    other: dict[str, Any] = {
        "name": "other",
        "weight_bits": 7,
        "group_size": 64,
        "modes": {dialect: {"*": ProductMode.FLOAT} for dialect in PADDED_DIALECTS},
        "smoothquant_alphas": (),
        "smoothing_refinement_steps": 0,
        "head_transforms": False,
        "split_channel_share": 0.5,
        "clip_ratios": (0.5,),
        "channel_shift": (),
        "rounding": Rounding.NEAREST,
        "correct_bias": False,
        "floats": Precision.FP16,
    }
    assert other.keys() == Recipe.__dataclass_fields__.keys()
    hashes = {dataclasses.replace(FAST, **{name: value}).sha256 for name, value in other.items()}
    assert len(hashes | {FAST.sha256}) == len(other) + 1
    assert parse_recipe(changed(), where="x").sha256 == FAST.sha256


def test_the_last_pattern_that_fits_decides() -> None:
    modes = {"*": "group", "layer.1.*": "float", "layer.*.ffn.down": "static"}
    recipe = parse_recipe(changed(modes={"portable": modes, "fused": {"*": "static"}}), where="x")
    assert recipe.mode(Dialect.PORTABLE, "layer.0.ffn.up") is ProductMode.GROUP
    assert recipe.mode(Dialect.PORTABLE, "layer.1.ffn.up") is ProductMode.FLOAT
    assert recipe.mode(Dialect.PORTABLE, "layer.1.ffn.down") is ProductMode.STATIC
    assert recipe.mode(Dialect.FUSED, "layer.1.ffn.up") is ProductMode.STATIC


def test_patterns_that_fit_nothing_and_products_without_a_mode_are_named(checkpoint: Checkpoint) -> None:
    modes = {
        "portable": {"*": "static", "layer.99.*": "float"},
        "fused": {"layer.*.ffn.*": "static", "pooler": "float"},
    }
    recipe = parse_recipe(changed(name="mine", modes=modes), where="x")
    with pytest.raises(UsageError) as caught:
        recipe.check(all_groups(checkpoint.config))
    assert str(caught.value).splitlines() == [
        "recipe mine:",
        "  - modes.portable: 'layer.99.*' fits no product of this model",
        "  - modes.fused: 'pooler' fits no product of this model",
        "  - modes.fused: no pattern fits layer.0.attention.qkv and 5 others",
        "  - its products are called layer.0.attention.qkv to layer.2.ffn.down",
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema", 3),
        ("schema", True),
        ("name", ""),
        ("name", "a.b"),
        ("name", "../up"),
        ("name", "\u00e4"),
        ("name", "a" * 101),
        ("name", 1),
        ("weight_bits", 4),
        ("weight_bits", 8.0),
        ("group_size", 0),
        ("group_size", 24),
        ("group_size", -16),
        ("group_size", "128"),
        ("modes", {}),
        ("floats", "int8"),
        ("modes", {"portable": {"*": "static"}, "fused": {}}),
        ("modes", {"portable": {"*": "int4"}, "fused": {"*": "static"}}),
        ("modes", {"portable": {"*": "group"}, "fused": {"*": "group"}}),
        ("modes", {"portable": {"*": ["static"]}, "fused": {"*": "static"}}),
        ("smoothquant_alphas", [1.5]),
        ("smoothquant_alphas", [True]),
        ("smoothquant_alphas", 0.5),
        ("smoothquant_alphas", [0.5] * (MAX_CHOICES + 1)),
        ("smoothquant_alphas", [float("nan")]),
        ("smoothing_refinement_steps", -1),
        ("smoothing_refinement_steps", MAX_STEPS + 1),
        ("smoothing_refinement_steps", 60.0),
        ("smoothing_refinement_steps", True),
        ("head_transforms", 1),
        ("split_channel_share", -0.1),
        ("split_channel_share", 1.5),
        ("split_channel_share", "1"),
        ("clip_ratios", []),
        ("clip_ratios", [0]),
        ("channel_shift", ["packed"]),
        ("channel_shift", [["portable"]]),
        ("channel_shift", "portable"),
        ("rounding", "up"),
        ("rounding", ["nearest"]),
        ("correct_bias", 1),
    ],
)
def test_a_wrong_value_is_named_with_what_is_expected(field: str, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        parse_recipe(changed(**{field: value}), where="mine.json")
    first, *problems = str(caught.value).splitlines()
    assert first == "recipe mine.json:"
    assert [line.split(":")[0] for line in problems] == [f"  - {field}"]
    assert f"got {json.dumps(value)}"[:80] in problems[0]


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        parse_recipe(changed(weight_bits=4, rounding="up", clip_ratios=[2]), where="mine.json")
    assert [line.split(":")[0].strip(" -") for line in str(caught.value).splitlines()[1:]] == [
        "weight_bits",
        "clip_ratios",
        "rounding",
    ]


@pytest.mark.parametrize("text", ["{", "[]", "null", '"fast"', "{}", '{"schema": 1, "bits": 8}'])
def test_what_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"recipe mine\.json:"):
        parse_recipe(text, where="mine.json")


def test_unknown_and_missing_fields_are_named() -> None:
    data = json.loads(changed(bits=8))
    del data["rounding"]
    with pytest.raises(UsageError, match=r"missing fields: rounding\n.*unknown fields: bits"):
        parse_recipe(json.dumps(data), where="x")


def test_recipes_of_schema_1_are_read() -> None:
    text = (GOLDEN / "recipe.schema-1.json").read_text(encoding="utf-8")
    assert parse_recipe(text, where="x") == FAST
    old: dict[str, Any] = json.loads(text)
    for wrong, said in (
        ({"clip_ratios": [1.0]}, r"(?s)missing fields: .*unknown fields: .*migrations"),
        ({"schema": 2}, r"unknown fields: .*migrations"),
        ({"rounding": "up"}, r"rounding: expected"),
        ({"clippings": [2]}, r"clippings: expected"),
        ({"copied": 1, "migrations": None}, r"(?s)unknown fields: copied\n.*migrations: expected"),
    ):
        with pytest.raises(UsageError, match=said):
            parse_recipe(json.dumps({**old, **wrong}), where="x")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(changed(name="mine", weight_bits=7), encoding="utf-8")
    assert load_recipe(str(path)) == dataclasses.replace(FAST, name="mine", weight_bits=7)
    for wrong in (tmp_path / "none.json", tmp_path, path / "below", "", "a" * 5000):
        with pytest.raises(UsageError, match="neither a file nor one of fast, precise") as caught:
            load_recipe(str(wrong))
        assert len(str(caught.value)) < 500
    # Reading at address 0 of this process gives EIO, as a broken disk does.
    with pytest.raises(FileError, match="/proc/self/mem: cannot be read: Input/output error: the device"):
        load_recipe("/proc/self/mem")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot be read as UTF-8"):
        load_recipe(str(path))
