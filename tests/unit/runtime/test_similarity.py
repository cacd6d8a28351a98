from __future__ import annotations

import numpy as np
import pytest

from mexma_runtime import InputError
from mexma_runtime import similarity as module
from mexma_runtime.similarity import pairwise_similarity, similarity
from mexma_runtime.types import Similarity

RANDOM = np.random.default_rng(3)
A, B = RANDOM.standard_normal((7, 12)).astype(np.float32), RANDOM.standard_normal((5, 12)).astype(np.float32)

functions = pytest.mark.parametrize("function", Similarity)


@functions
def test_scores_are_those_of_sentence_transformers(function: Similarity) -> None:
    theirs = pytest.importorskip("sentence_transformers.util").SimilarityFunction
    of_all = theirs.to_similarity_fn(function.value)
    of_pairs = theirs.to_similarity_pairwise_fn(function.value)

    np.testing.assert_allclose(similarity(A, B, function), of_all(A, B).numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(similarity(A[0], B, function), of_all(A[0], B).numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        pairwise_similarity(A[:5], B, function), of_pairs(A[:5], B).numpy(), rtol=1e-5, atol=1e-5
    )


@functions
def test_many_rows_are_compared_in_blocks(function: Similarity, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = similarity(A, B, function)
    monkeypatch.setattr(module, "BLOCK_NUMBERS", B.size * 2)

    np.testing.assert_array_equal(similarity(A, B, function), whole)
    assert similarity(A[:0], B, function).shape == (0, 5)


@functions
def test_a_vector_is_nearest_to_itself(function: Similarity) -> None:
    unit = A / np.linalg.norm(A, axis=1, keepdims=True)

    np.testing.assert_array_equal(similarity(unit, unit, function).argmax(axis=1), np.arange(len(A)))


@functions
def test_inputs_are_left_as_they_are_and_may_be_lists_of_other_numbers(function: Similarity) -> None:
    kept = A.copy()

    np.testing.assert_allclose(
        similarity(A.astype(np.float64).tolist(), list(B), function), similarity(A, B, function), rtol=1e-6
    )
    np.testing.assert_array_equal(A, kept)


@functions
def test_shapes_that_do_not_fit_are_refused(function: Similarity) -> None:
    for a, b in ((A, B[:, :5]), (A[None], B)):
        with pytest.raises(InputError, match="similarity: expected"):
            similarity(a, b, function)
    with pytest.raises(InputError, match=r"similarity: expected \(n, dim\) twice, got \(7, 12\) and \(5, 12\)"):
        pairwise_similarity(A, B, function)
