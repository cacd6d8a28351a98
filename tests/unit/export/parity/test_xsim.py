from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mexma_export.parity.xsim import K, xsim_errors
from mexma_runtime.errors import MissingDependencyError, ParityError
from mexma_runtime.types import Vectors


def random_vectors(seed: int, n: int, dim: int = 8) -> Vectors:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def names(n: int) -> list[str]:
    return [f"sentence {i}" for i in range(n)]


def brute_force(source: Vectors, target: Vectors) -> int:
    """The definition read aloud, one pair at a time."""
    n = len(source)
    cosine = [
        [float(np.dot(x, y) / np.sqrt(np.dot(x, x) * np.dot(y, y))) for y in target.astype(float)]
        for x in source.astype(float)
    ]
    k = min(4, n)
    mean_x = [sum(sorted(cosine[i], reverse=True)[:k]) / k for i in range(n)]
    mean_y = [sum(sorted((cosine[i][j] for i in range(n)), reverse=True)[:k]) / k for j in range(n)]
    errors = 0
    for i in range(n):
        nearest = sorted(range(n), key=lambda j: -cosine[i][j])[:k]
        errors += i != max(nearest, key=lambda j: cosine[i][j] / ((mean_x[i] + mean_y[j]) / 2))
    return errors


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 30), noise=st.sampled_from([0.3, 1.0, 3.0]))
@settings(max_examples=50)
def test_errors_are_their_definition(seed: int, n: int, noise: float) -> None:
    source = random_vectors(seed, n)
    target = source + np.float32(noise) * random_vectors(seed + 1, n)
    assert xsim_errors(source, target, names(n)) == brute_force(source, target)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 30), scale=st.sampled_from([0.01, 100.0]))
@settings(max_examples=20)
def test_length_and_order_do_not_matter(seed: int, n: int, scale: float) -> None:
    source = random_vectors(seed, n)
    target = source + random_vectors(seed + 1, n)
    errors = xsim_errors(source, target, names(n))
    order = np.random.default_rng(seed).permutation(n)
    assert xsim_errors(np.float32(scale) * source[order], target[order], names(n)) == errors


def test_known_answers() -> None:
    vectors = random_vectors(0, 200, 32)
    original = vectors.copy()
    assert xsim_errors(vectors, vectors, names(200)) == 0
    assert xsim_errors(vectors, vectors + np.float32(0.01) * random_vectors(1, 200, 32), names(200)) == 0
    assert xsim_errors(vectors, np.roll(vectors, 1, axis=0), names(200)) == 200
    swapped = vectors[[1, 0, *range(2, 200)]]
    assert xsim_errors(vectors, swapped, names(200)) == 2
    assert np.array_equal(vectors, original)  # the caller's rows are not normalised in place


def test_the_margin_sees_through_a_hub() -> None:
    """Target 0 is the nearest to every source; the ratio knows that it is so to all of them."""
    n = 8
    axes = np.eye(2 * n, dtype=np.float32)
    source = axes[:n] + axes[0]
    target = axes[:n] + axes[n:]
    target[0] = axes[0]
    cosines = (source @ target.T) / np.linalg.norm(source, axis=1)[:, None] / np.linalg.norm(target, axis=1)
    assert (cosines.argmax(axis=1) == 0).all()
    assert xsim_errors(source, target, names(n)) == 0


def test_any_copy_of_the_right_sentence_is_right() -> None:
    vectors = random_vectors(0, 20)
    vectors[7] = vectors[3]
    texts = names(20)
    assert xsim_errors(vectors, vectors, texts) == 1  # one of the two must choose the other's
    texts[7] = texts[3]
    assert xsim_errors(vectors, vectors, texts) == 0


def test_copies_take_places_among_the_neighbours() -> None:
    """The hub again, five times: its copies are the four nearest, so that only its own rows are right."""
    n, n_copies = 8, K
    axes = np.eye(2 * n, dtype=np.float32)
    hubs = np.tile(axes[0], (n_copies, 1))
    source = np.concatenate([axes[:n] + axes[0], hubs])
    target = np.concatenate([axes[:1], (axes[:n] + axes[n:])[1:], hubs])
    texts = ["hub", *names(n)[1:], *["hub"] * n_copies]
    assert xsim_errors(source, target, texts) == n - 1


@pytest.mark.parametrize("flaw", [np.nan, 0.0])
def test_vectors_without_direction_are_refused(flaw: float) -> None:
    good = random_vectors(0, 5)
    bad = good.copy()
    bad[3] = flaw
    for pair, whose in (((bad, good), "source"), ((good, bad), "target")):
        with pytest.raises(ParityError, match=f"^{whose}: row 3 "):
            xsim_errors(*pair, names(5))


def test_shapes_must_match() -> None:
    good = random_vectors(0, 5)
    for source, target, n in ((good, good[1:], 5), (good, good, 4), (good[:0], good[:0], 0)):
        with pytest.raises(ParityError, match=r"expected . source and target vectors of one size"):
            xsim_errors(source, target, names(n))


def test_without_faiss_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependencyError, match=r"faiss-cpu is not installed.*mexma-runtime\[bench\]"):
        xsim_errors(random_vectors(0, 5), random_vectors(0, 5), names(5))
