"""Which precision goes with which recipe and which numbers."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mexma_export.graph.input_quantization import Activation
from mexma_export.quantize.options import (
    FP8_MAX_FLOAT_SHARE,
    FP8_MIN_COSINE,
    MAX_FLOAT_SHARE,
    QuantizationOptions,
)
from mexma_export.quantize.recipe import load_recipe, parse_recipe
from mexma_runtime.errors import UsageError
from mexma_runtime.types import Precision

FAST, TENSORRT = load_recipe("fast"), load_recipe("tensorrt")
INT8, FP8 = Precision.INT8, Precision.FP8


def test_int8_is_by_every_recipe_and_fp8_by_those_for_tensorrt() -> None:
    options = QuantizationOptions(recipes=(FAST, TENSORRT))
    assert options.precisions_and_recipes((INT8, FP8)) == [(INT8, FAST), (INT8, TENSORRT), (FP8, TENSORRT)]
    assert options.precisions_and_recipes((Precision.FP32, INT8)) == [(INT8, FAST), (INT8, TENSORRT)]


def test_fp8_without_a_recipe_and_a_recipe_without_a_precision_are_refused() -> None:
    refusal = "fp8 is for TensorRT alone, and fast is not: give --recipe tensorrt, or a recipe .* whose floats are fp16"
    for recipes, precisions, ending in (
        ((FAST,), (FP8,), "$"),
        ((FAST,), (INT8, FP8), "$"),
        ((FAST, TENSORRT), (FP8,), ", and for the others --precision int8$"),
    ):
        with pytest.raises(UsageError, match=refusal + ending):
            QuantizationOptions(recipes=recipes).precisions_and_recipes(precisions)


def test_numbers_follow_from_precision_and_recipe() -> None:
    options = QuantizationOptions(recipes=(FAST, TENSORRT))
    assert options.activation_of(INT8, FAST) is Activation.UINT8
    assert options.activation_of(INT8, TENSORRT) is Activation.INT8
    assert options.activation_of(FP8, TENSORRT) is Activation.E4M3
    symmetric = dataclasses.replace(options, activation=Activation.INT8)
    assert symmetric.activation_of(INT8, FAST) is Activation.INT8
    assert symmetric.activation_of(FP8, TENSORRT) is Activation.E4M3


def test_what_tensorrt_does_not_take_is_refused() -> None:
    with pytest.raises(UsageError, match="TensorRT takes symmetric integers, not uint8, and tensorrt is for TensorRT"):
        QuantizationOptions(recipes=(TENSORRT,), activation=Activation.UINT8)
    with pytest.raises(UsageError, match="e4m3 is what the precision fp8 has"):
        QuantizationOptions(recipes=(TENSORRT,), activation=Activation.E4M3)


def test_fp8_has_a_bound_of_its_own() -> None:
    options = QuantizationOptions(recipes=(TENSORRT,))
    assert (options.min_cosine_of(INT8), options.max_float_share_of(INT8)) == (None, MAX_FLOAT_SHARE)
    assert (options.min_cosine_of(FP8), options.max_float_share_of(FP8)) == (FP8_MIN_COSINE, FP8_MAX_FLOAT_SHARE)
    asked = dataclasses.replace(options, min_cosine=0.99, max_float_share=0.0)
    for precision in (INT8, FP8):
        assert (asked.min_cosine_of(precision), asked.max_float_share_of(precision)) == (0.99, 0.0)


def test_a_recipe_around_fp16_is_for_the_portable_dialect_alone() -> None:
    data = TENSORRT.to_json()
    assert parse_recipe(json.dumps(data), where="x") == TENSORRT
    data["modes"] = {**data["modes"], "fused": {"*": "static"}}
    with pytest.raises(UsageError, match="floats: fp16 is for TensorRT, which takes the portable dialect"):
        parse_recipe(json.dumps(data), where="x")
    data["modes"] = {"portable": {"*": "group"}}
    with pytest.raises(UsageError, match="scales a group are found by OpenVINO, not by TensorRT"):
        parse_recipe(json.dumps(data), where="x")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipes": ()}, "no recipe"),
        ({"recipes": (FAST, load_recipe("precise"), FAST)}, "several recipes are called fast: engines are named"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
        ({"min_cosine": 1}, "min_cosine: expected a number between 0 and 1, got 1"),
        ({"min_cosine": 0}, "min_cosine: expected"),
        ({"min_cosine": float("nan")}, "min_cosine: expected"),
        ({"max_float_share": -0.1}, "max_float_share: expected a number from 0 to 1, got -0.1"),
        ({"max_float_share": float("nan")}, "max_float_share: expected"),
    ],
)
def test_wishes_that_mean_nothing_are_refused(changes: dict[str, object], said: str) -> None:
    wishes: dict[str, object] = {"recipes": (FAST,)} | changes
    with pytest.raises(UsageError, match=said):
        QuantizationOptions(**wishes)  # type: ignore[arg-type]
