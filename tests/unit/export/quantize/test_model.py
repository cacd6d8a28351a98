from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mexma_export.checkpoint.checkpoint import Checkpoint
from mexma_export.graph.input_quantization import Activation
from mexma_export.graph.linear import FusedInt8
from mexma_export.graph.linear_groups import all_groups, linears_of
from mexma_export.quantize.calibration import Calibration
from mexma_export.quantize.channel_splitting import n_split_channels
from mexma_export.quantize.layers import embed_tokens, layer_tensors, open_layer
from mexma_export.quantize.model import FLOAT_SUFFIX, GraphParts, RecipeRun, quantize_model
from mexma_export.quantize.recipe import FOR_CPUS, Recipe
from mexma_runtime.bundle.manifest import ProductMode
from mexma_runtime.types import PADDED_DIALECTS, Dialect

MakeRecipe = Callable[..., Recipe]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
    """What came of one recipe."""

    graphs: dict[Dialect, GraphParts]
    stored: dict[str, NDArray[Any]]

    def tensors(self, dialect: Dialect) -> dict[str, NDArray[Any]]:
        """What the graph of `dialect` names."""
        parts = self.graphs[dialect]
        tensors = self.stored | parts.vectors
        for group, how in parts.inputs.items():
            if how.mode is ProductMode.FLOAT:
                tensors |= {f"{n}.weight": self.stored[f"{n}.weight{FLOAT_SUFFIX}"] for n in linears_of(group)}
        return tensors


def quantize(
    checkpoint: Checkpoint,
    calibration: Calibration,
    *recipes: Recipe,
    dialects: tuple[Dialect, ...] = PADDED_DIALECTS,
    floats: frozenset[str] = frozenset(),
    seed: int = 0,
) -> list[Done]:
    done = [Done(graphs={dialect: GraphParts() for dialect in dialects}, stored={}) for _ in recipes]
    jobs = [
        RecipeRun(
            recipe=recipe,
            activation=Activation.UINT8,
            store=of.stored.__setitem__,
            graphs=of.graphs,
            floats=floats,
        )
        for recipe, of in zip(recipes, done, strict=True)
    ]
    quantize_model(checkpoint, jobs, calibration, seed=seed, n_threads=1)
    return done


@pytest.fixture(scope="module")
def done(checkpoint: Checkpoint, calibration: Calibration, make_recipe: MakeRecipe) -> tuple[Done, Done]:
    """`fast` and `precise`, in one run."""
    fast, precise = quantize(checkpoint, calibration, make_recipe(), make_recipe("precise"))
    return fast, precise


def relative_error(checkpoint: Checkpoint, calibration: Calibration, done: Done, layer: int) -> float:
    """Of one quantized layer's output on what it reads in the fp32 model, onnxruntime's dialect."""
    *before, exact = (open_layer(checkpoint, n, layer_tensors(checkpoint, n), n_threads=1) for n in range(layer + 1))
    products = FusedInt8(done.graphs[Dialect.FUSED].inputs)
    ours = open_layer(checkpoint, layer, done.tensors(Dialect.FUSED), products=products, n_threads=1)
    expected: list[NDArray[np.float32]] = []
    found: list[NDArray[np.float32]] = []
    for _, hidden in list(embed_tokens(checkpoint, calibration))[::6]:
        for run in before:
            *_, hidden = run(hidden).values()  # noqa: PLW2901
        for run, kept in ((exact, expected), (ours, found)):
            *_, out = run(hidden).values()
            kept.append(out.reshape(-1, out.shape[-1]))
    right, difference = np.concatenate(expected), np.concatenate(found) - np.concatenate(expected)
    return float(np.square(difference).mean() / np.square(right - right.mean(axis=0)).mean())


def test_every_group_is_quantized_and_stored_in_both_dialects(
    checkpoint: Checkpoint, done: tuple[Done, Done], make_recipe: MakeRecipe
) -> None:
    groups = all_groups(checkpoint.config)
    linears = [linear for group in groups for linear in linears_of(group)]
    for of, name in zip(done, FOR_CPUS, strict=True):
        assert sorted(of.stored) == sorted(f"{linear}.weight" for linear in linears)
        assert {array.dtype for array in of.stored.values()} == {np.dtype(np.int8)}
        for parts in of.graphs.values():
            assert set(parts.inputs) == set(parts.results) == set(groups)
            for linear in linears:
                n_in, n_out = of.stored[f"{linear}.weight"].shape
                expected = dict(zip(("out", "in"), checkpoint.tensors[f"{linear}.weight"].shape, strict=True))
                if ".ffn." in linear:
                    side = "out" if linear.endswith("up") else "in"
                    expected[side] += n_split_channels(
                        make_recipe(name), "layer.0.ffn.down", checkpoint.config.ffn_size
                    )
                assert {"out": n_out, "in": n_in} == expected
                for vector in ("bias", "weight.scale"):
                    assert parts.vectors[f"{linear}.{vector}"].shape == (n_out,)
            assert all(vector.dtype == np.float32 for vector in parts.vectors.values())


def test_modes_are_the_recipes(done: tuple[Done, Done], make_recipe: MakeRecipe) -> None:
    for of, recipe in zip(done, map(make_recipe, FOR_CPUS), strict=True):
        for dialect, parts in of.graphs.items():
            assert all(how.mode is recipe.mode(dialect, group) for group, how in parts.inputs.items())


def test_the_attentions_smoothing_becomes_part_of_the_values(
    checkpoint: Checkpoint, calibration: Calibration, done: tuple[Done, Done], make_recipe: MakeRecipe
) -> None:
    (without_transforms,) = quantize(checkpoint, calibration, make_recipe(head_transforms=False))
    for of in (*done, without_transforms):
        for parts in of.graphs.values():
            folded = [how for group, how in parts.inputs.items() if group.endswith("attention.output")]
            assert all(how.multiplier is None and how.shift is None for how in folded)
    for parts in without_transforms.graphs.values():
        results = [found for group, found in parts.results.items() if group.endswith("attention.output")]
        assert any(result.alpha is not None for result in results)
    assert relative_error(checkpoint, calibration, without_transforms, 0) < 2e-3


def test_what_is_exact_lessens_the_errors_and_is_not_what_they_are_compared_with(
    checkpoint: Checkpoint, calibration: Calibration, done: tuple[Done, Done], make_recipe: MakeRecipe
) -> None:
    (without,) = quantize(checkpoint, calibration, make_recipe("precise", head_transforms=False, split_channel_share=0))
    for dialect in PADDED_DIALECTS:
        results, others = (of.graphs[dialect].results for of in (done[1], without))
        outputs = [group for group in results if group.endswith("attention.output")]
        assert sum(results[g].errors.final for g in outputs) < 0.9 * sum(others[g].errors.final for g in outputs)
        for group, result in results.items():
            assert result.errors.plain == pytest.approx(others[group].errors.plain), group


@pytest.mark.parametrize("layer", [0, 2])
def test_a_layer_over_the_plan_is_close_to_the_float_one(
    checkpoint: Checkpoint, calibration: Calibration, done: tuple[Done, Done], layer: int
) -> None:
    """The last layer computes one row: its queries read another value than its keys."""
    errors = [relative_error(checkpoint, calibration, of, layer) for of in done]
    assert all(1e-7 < error < 2e-3 for error in errors), errors


def test_two_recipes_in_one_run_are_what_each_is_alone(
    checkpoint: Checkpoint, calibration: Calibration, done: tuple[Done, Done], make_recipe: MakeRecipe
) -> None:
    (alone,) = quantize(checkpoint, calibration, make_recipe("precise"))
    together = done[1]
    for name, array in alone.stored.items():
        assert np.array_equal(together.stored[name], array), name
    for dialect, parts in alone.graphs.items():
        for name, vector in parts.vectors.items():
            assert np.array_equal(together.graphs[dialect].vectors[name], vector), name


def test_a_recipe_may_be_of_one_dialect(
    checkpoint: Checkpoint, calibration: Calibration, done: tuple[Done, Done], make_recipe: MakeRecipe
) -> None:
    """`fast` has no groups of channels, so it is in the fused dialect what it is in both."""
    modes = {Dialect.FUSED: make_recipe().modes[Dialect.FUSED]}
    (alone,) = quantize(checkpoint, calibration, make_recipe(modes=modes), dialects=(Dialect.FUSED,))
    assert alone.stored.keys() == done[0].stored.keys()
    assert relative_error(checkpoint, calibration, alone, 0) < 2e-3


def test_another_seed_samples_other_tokens(
    checkpoint: Checkpoint, calibration: Calibration, done: tuple[Done, Done], make_recipe: MakeRecipe
) -> None:
    (other,) = quantize(checkpoint, calibration, make_recipe(), seed=1)
    vectors, others = (of.graphs[Dialect.FUSED].vectors for of in (done[0], other))
    assert any(not np.array_equal(vectors[name], others[name]) for name in vectors)


def test_groups_left_in_float(checkpoint: Checkpoint, calibration: Calibration, make_recipe: MakeRecipe) -> None:
    """By the user's wish in both dialects, by the recipe in one: there the folded smoothing must not be lost."""
    both = frozenset({"layer.0.attention.output", "layer.0.attention.qkv"})
    modes = {
        Dialect.PORTABLE: {"*": ProductMode.STATIC},
        Dialect.FUSED: {"*": ProductMode.TOKEN, "layer.2.attention.*": ProductMode.FLOAT},
    }
    (of,) = quantize(checkpoint, calibration, make_recipe(modes=modes), floats=both)
    for group in both:
        assert all(parts.inputs[group].mode is ProductMode.FLOAT for parts in of.graphs.values())
        for linear in linears_of(group):
            expected = layer_tensors(checkpoint, 0)[f"{linear}.weight"]
            assert np.array_equal(of.stored[f"{linear}.weight{FLOAT_SUFFIX}"], expected)
            assert f"{linear}.weight" not in of.stored
    assert {"layer.2.attention.key.weight", "layer.2.attention.key.weight.float"} <= of.stored.keys()
    for layer in (0, 2):
        assert relative_error(checkpoint, calibration, of, layer) < 2e-3
    results = of.graphs[Dialect.FUSED].results
    assert "layer.2.attention.output" not in results
    assert "layer.2.ffn.up" in results


def test_progress_counts_layers(checkpoint: Checkpoint, calibration: Calibration, make_recipe: MakeRecipe) -> None:
    calls: list[tuple[int, int]] = []
    job = RecipeRun(
        recipe=make_recipe(modes={dialect: {"*": ProductMode.FLOAT} for dialect in PADDED_DIALECTS}),
        activation=Activation.UINT8,
        store=lambda name, array: None,
        graphs={Dialect.FUSED: GraphParts()},
    )
    quantize_model(
        checkpoint,
        [job],
        calibration,
        seed=0,
        n_threads=1,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]
