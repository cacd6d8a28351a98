from __future__ import annotations

import json
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mexma_export.parity import neighbours
from mexma_export.parity.figures import (
    InvarianceFigures,
    ParityFigures,
    RowFigures,
    batch_invariance,
    compare,
    pair_cosines,
    worst_rows,
)
from mexma_export.parity.neighbours import TIE_DISTANCE
from mexma_export.parity.thresholds import THRESHOLDS, check, check_invariance
from mexma_runtime.errors import ParityError
from mexma_runtime.types import Precision, Vectors

FLOATS = [field.name for field in fields(ParityFigures) if field.name != "n_sentences"]

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(2, 40)
light = settings(max_examples=25, deadline=None)


def random_vectors(seed: int, n: int, dim: int = 8) -> Vectors:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def noisy(vectors: Vectors, seed: int, scale: float = 0.3) -> Vectors:
    return vectors + scale * random_vectors(seed, *vectors.shape)


def numbers(figures: ParityFigures) -> list[float | None]:
    return [getattr(figures, name) for name in FLOATS]


def on_circle(*degrees: float) -> Vectors:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def brute_force(vectors: Vectors, reference: Vectors) -> dict[str, float]:
    """The definitions read aloud, one pair at a time; without ties."""
    n = len(reference)
    v, r = vectors.astype(float).tolist(), reference.astype(float).tolist()

    def norm(a: list[float]) -> float:
        return float(np.sqrt(sum(x * x for x in a)))

    def minus(a: list[float], b: list[float]) -> list[float]:
        return [x - y for x, y in zip(a, b, strict=True)]

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / (norm(a) * norm(b))

    def nearest(queries: list[list[float]], index: list[list[float]], i: int) -> list[int]:
        others = [j for j in range(n) if j != i]
        return sorted(others, key=lambda j: -cosine(queries[i], index[j]))[: min(10, n - 1)]

    cosines = [cosine(a, b) for a, b in zip(v, r, strict=True)]
    ratios = [norm(a) / norm(b) for a, b in zip(v, r, strict=True)]
    distance = np.sqrt(np.mean([norm(minus(r[i], r[j])) ** 2 for i in range(n) for j in range(n) if i != j]))
    errors = [norm(minus(a, b)) / distance for a, b in zip(v, r, strict=True)]
    result = {
        "cosine_min": min(cosines),
        "cosine_p1": float(np.percentile(cosines, 1)),
        "cosine_mean": float(np.mean(cosines)),
        "max_abs_difference": max(abs(x) for a, b in zip(v, r, strict=True) for x in minus(a, b)),
        "norm_ratio_min": min(ratios),
        "norm_ratio_max": max(ratios),
        "relative_error_mean": float(np.mean(errors)),
        "relative_error_max": max(errors),
    }
    for name, index in (("", v), ("mixed_", r)):
        true = [nearest(r, r, i) for i in range(n)]
        chosen = [nearest(v, index, i) for i in range(n)]
        result[f"{name}top1_agreement"] = float(np.mean([a[0] == b[0] for a, b in zip(chosen, true, strict=True)]))
        shared = [len(set(a) & set(b)) / len(b) for a, b in zip(chosen, true, strict=True)]
        result[f"{name}top10_agreement"] = float(np.mean(shared))
    return result


@given(seed=seeds, n=sizes)
@light
def test_every_figure_is_its_definition(seed: int, n: int) -> None:
    reference = random_vectors(seed, n)
    unit = reference / np.linalg.norm(reference.astype(np.float64), axis=1, keepdims=True)
    distances = np.sort(np.linalg.norm(unit[:, np.newaxis] - unit, axis=-1), axis=1)
    assume(np.diff(distances, axis=1).min() > 2 * TIE_DISTANCE)  # neighbours so alike agree with one another
    vectors = noisy(reference, seed + 1)
    expected = brute_force(vectors, reference)
    figures = compare(vectors, reference)
    assert sorted(expected) == sorted(FLOATS)
    assert {name: getattr(figures, name) for name in FLOATS} == pytest.approx(expected, abs=1e-9)
    assert figures.n_sentences == n


def test_blocks_do_not_change_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = random_vectors(0, 53)
    vectors = noisy(reference, 1)
    whole = compare(vectors, reference)
    monkeypatch.setattr(neighbours, "_BLOCK_BYTES", 8 * 53 * 7)  # neighbours in blocks of 7 rows
    assert numbers(compare(vectors, reference)) == pytest.approx(numbers(whole), abs=1e-12)


@given(seed=seeds, n=sizes)
@light
def test_some_rows_are_summarised_within_the_whole_corpus(seed: int, n: int) -> None:
    """A row's figures are its share of the whole's; parts, weighted by their sizes, add up to it."""
    reference = random_vectors(seed, n)
    vectors = noisy(reference, seed + 1)
    rows = RowFigures.of(vectors, reference)
    whole, parts = rows.summary(), [rows.summary(range(n // 2)), rows.summary(np.arange(n // 2, n))]
    assert sum(part.n_sentences for part in parts) == n
    for name in FLOATS:
        values, weights = [getattr(part, name) for part in parts], [part.n_sentences for part in parts]
        if name.endswith(("_mean", "_agreement")):
            assert np.average(values, weights=weights) == pytest.approx(getattr(whole, name), abs=1e-12)
        elif name.endswith("_min"):
            assert min(values) == getattr(whole, name)
        elif name != "cosine_p1":
            assert max(values) == getattr(whole, name)


def test_a_part_has_its_own_percentile_and_the_corpus_neighbours() -> None:
    reference = random_vectors(0, 30)
    vectors = noisy(reference, 1)
    part = RowFigures.of(vectors, reference).summary([7])
    assert part.cosine_p1 == part.cosine_min == part.cosine_mean == pair_cosines(vectors, reference)[7]
    assert part.top10_agreement is not None  # though one sentence by itself has no neighbours


@given(seed=seeds, n=sizes)
@light
def test_identity_is_perfect(seed: int, n: int) -> None:
    vectors = random_vectors(seed, n)
    perfect = {name: 0.0 if "error" in name or "difference" in name else 1.0 for name in FLOATS}
    figures = compare(vectors, vectors)
    assert {name: getattr(figures, name) for name in FLOATS} == pytest.approx(perfect, abs=1e-12)
    assert figures.cosine_min <= figures.cosine_mean <= 1
    assert not any(check(figures, precision) for precision in THRESHOLDS)


@given(seed=seeds, n=sizes)
@light
def test_the_order_of_the_sentences_does_not_matter(seed: int, n: int) -> None:
    reference = random_vectors(seed, n)
    vectors = noisy(reference, seed + 1)
    order = np.random.default_rng(seed).permutation(n)
    assert numbers(compare(vectors[order], reference[order])) == pytest.approx(
        numbers(compare(vectors, reference)), abs=1e-9
    )


@given(seed=seeds, n=sizes, scale=st.sampled_from([0.25, 2.0, 1024.0]))
@light
def test_scaling_changes_norms_and_not_cosines_or_neighbours(seed: int, n: int, scale: float) -> None:
    reference = random_vectors(seed, n)
    vectors = noisy(reference, seed + 1)
    before, after = compare(vectors, reference), compare(vectors * np.float32(scale), reference)
    for name in FLOATS:
        if "cosine" in name or "agreement" in name:
            assert getattr(after, name) == pytest.approx(getattr(before, name), abs=1e-12)
    assert after.norm_ratio_min == pytest.approx(scale * before.norm_ratio_min)
    assert after.norm_ratio_max == pytest.approx(scale * before.norm_ratio_max)


def test_small_angles_are_resolved() -> None:
    figures = compare(on_circle(0, 90 + 0.01), on_circle(0, 90))
    assert 1 - figures.cosine_min == pytest.approx(np.deg2rad(0.01) ** 2 / 2, rel=1e-2)  # 1.5e-8


def test_cosine_is_within_one() -> None:
    vectors = random_vectors(0, 2000, 3)
    assert compare(vectors, vectors).cosine_p1 <= 1
    assert compare(-vectors, vectors).cosine_min >= -1


def test_duplicates_agree_whichever_is_chosen() -> None:
    """Of copies of one sentence any may be the nearest; noise far above TIE_DISTANCE decides which is."""
    reference = random_vectors(0, 20)
    reference = np.concatenate([reference, reference, reference])
    vectors = noisy(reference, 1, scale=1e-3)
    figures = compare(vectors, reference)
    assert figures.top1_agreement == 1
    assert figures.mixed_top1_agreement == 1


def test_a_tie_needs_equal_reference_similarities() -> None:
    reference = on_circle(0, 10, -10)
    engine = on_circle(0, 11, -10)
    assert compare(engine, reference).top1_agreement == 1  # 10 and -10 degrees are equally near 0
    reference = on_circle(0, 10, -10.1)
    assert compare(engine, reference).top1_agreement == pytest.approx(2 / 3)  # now only 10 is nearest


def test_a_tie_does_not_excuse_missing_a_nearer_one() -> None:
    """At 0 degrees the reference has one near sentence and 20 equally far ones; ten of those miss the near one."""
    reference = on_circle(0, 5, *[60] * 20)
    engine = on_circle(0, 120, *[60] * 20)
    # The query at 0 has nine right, and so has the one moved from 5 to 120; the copies have each other.
    assert compare(engine, reference).top10_agreement == pytest.approx(1 - 2 / 220)


def test_an_engine_that_gives_one_vector_does_not_agree() -> None:
    reference = random_vectors(0, 200)
    figures = compare(np.ones_like(reference), reference)
    assert figures.top10_agreement is not None
    assert figures.top10_agreement < 0.2


def test_cosine_flatters_where_relative_error_does_not() -> None:
    """All vectors point one way, as in a random model: unrelated rows still have cosine > 0.999."""
    spread = 0.01 * random_vectors(0, 100)
    direction = np.float32(10) * np.eye(8, dtype=np.float32)[0]
    figures = compare(np.roll(spread, 1, axis=0) + direction, spread + direction)
    assert figures.cosine_min > 0.999
    assert figures.relative_error_mean == pytest.approx(1, abs=0.1)


def test_one_sentence_has_no_neighbours() -> None:
    figures = compare(on_circle(1), on_circle(0))
    assert figures.cosine_min == pytest.approx(np.cos(np.deg2rad(1)))
    assert [name for name in FLOATS if getattr(figures, name) is None] == FLOATS[6:]
    unmeasured = check(compare(on_circle(0), on_circle(0)), Precision.FP32)
    assert [str(shortfall) for shortfall in unmeasured] == [
        "top10_agreement: expected >= 1, not measured: it takes two sentences or more"
    ]


def test_a_corpus_of_one_repeated_sentence_has_no_distance() -> None:
    reference = np.tile(random_vectors(0, 1, 64), (7, 1))
    figures = compare(noisy(reference, 1), reference)
    assert figures.relative_error_max is None
    assert figures.top10_agreement == 1


@pytest.mark.parametrize("flaw", [np.nan, np.inf, -np.inf, 0.0])
@pytest.mark.parametrize("whose", ["vectors", "reference"])
def test_unusable_rows_are_refused_by_number(flaw: float, whose: str) -> None:
    good = random_vectors(0, 5)
    bad = good.copy()
    bad[3] = flaw
    bad[4] = flaw
    pair = (bad, good) if whose == "vectors" else (good, bad)
    for measure in (compare, worst_rows):
        with pytest.raises(ParityError, match=f"^{whose}: row 3 .*2 such rows in 5"):
            measure(*pair)


def test_a_single_nan_entry_is_found() -> None:
    good = random_vectors(0, 5)
    bad = good.copy()
    bad[2, 7] = np.nan
    with pytest.raises(ParityError, match="row 2 holds NaN"):
        batch_invariance(good, bad)


@pytest.mark.parametrize("shape", [(4, 8), (5, 7), (5,), (0, 8), (5, 0)])
def test_shapes_must_match(shape: tuple[int, ...]) -> None:
    with pytest.raises(ParityError, match="one shape"):
        compare(np.ones(shape, dtype=np.float32), np.ones((5, 8), dtype=np.float32))
    if 0 in shape:
        with pytest.raises(ParityError, match="one shape"):
            compare(np.ones(shape, dtype=np.float32), np.ones(shape, dtype=np.float32))


def test_worst_rows_come_worst_first() -> None:
    reference = on_circle(*[0] * 6)
    vectors = on_circle(0, 20, 5, 40, 5, 1)
    rows = worst_rows(vectors, reference, k=4)
    assert [row.index for row in rows] == [3, 1, 2, 4]
    assert rows[0].cosine == pytest.approx(np.cos(np.deg2rad(40)))
    assert rows[0].max_abs_difference == pytest.approx(np.sin(np.deg2rad(40)))
    assert len(worst_rows(vectors, reference, k=50)) == 6
    assert RowFigures.of(vectors, reference).worst(k=4) == rows


def test_batch_invariance() -> None:
    alone = random_vectors(0, 30)
    together = alone.copy()
    together[11] += np.float32(0.5)
    figures = batch_invariance(alone, together)
    assert figures.max_abs_difference == pytest.approx(0.5)
    assert figures.cosine_min == compare(together, alone).cosine_min < 0.999
    assert batch_invariance(alone, alone).max_abs_difference == 0


def test_figures_are_plain_json() -> None:
    figures = compare(random_vectors(0, 12), random_vectors(1, 12))
    assert ParityFigures(**json.loads(json.dumps(asdict(figures), allow_nan=False))) == figures


@pytest.mark.parametrize(
    ("precision", "metric", "value"),
    [
        (Precision.FP32, "cosine_min", 0.9999989),
        (Precision.FP32, "max_abs_difference", 1.1e-4),
        (Precision.FP32, "top10_agreement", 0.9999),
        (Precision.FP16, "cosine_min", 0.99979),
        (Precision.FP16, "relative_error_mean", 0.0201),
        (Precision.FP16, "top10_agreement", 0.979),
        (Precision.FP16, "cosine_min", float("nan")),
    ],
)
def test_each_shortfall_is_said(precision: Precision, metric: str, value: float) -> None:
    vectors = random_vectors(0, 12)
    figures = replace(compare(vectors, vectors), **{metric: value})  # type: ignore[arg-type]
    (shortfall,) = check(figures, precision)
    assert str(shortfall).startswith(f"{metric}: expected ")
    assert f"got {value:.7g}" in str(shortfall)


def test_batch_mates_may_not_change_a_vector() -> None:
    def shortfalls(cosine: float, precision: Precision) -> list[str]:
        figures = InvarianceFigures(cosine_min=cosine, max_abs_difference=0.0)
        return [str(shortfall) for shortfall in check_invariance(figures, precision)]

    for precision in (Precision.FP32, Precision.INT8):
        assert shortfalls(0.9999991, precision) == []
        expected = "batch invariance, cosine_min: expected >= 0.999999, got 0.9999989"
        assert shortfalls(0.9999989, precision) == [expected]
    assert shortfalls(0.99991, Precision.FP16) == []
    assert len(shortfalls(0.99989, Precision.FP16)) == 1


def test_every_precision_has_thresholds() -> None:
    assert THRESHOLDS.keys() == set(Precision)


def test_eight_bits_around_fp16_may_be_rounded_the_other_way_among_batch_mates() -> None:
    for cosine, n_short in ((0.99901, 0), (0.9989, 1)):
        figures = InvarianceFigures(cosine_min=cosine, max_abs_difference=0.0)
        assert len(check_invariance(figures, Precision.INT8, is_around_fp16=True)) == n_short
        assert len(check_invariance(figures, Precision.INT8)) == 1
