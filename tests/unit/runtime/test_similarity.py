from __future__ import annotations

import datetime
from typing import Any

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
    for a, b in ((A[0], B[0]), (A[:1], B[0]), (A[0], B[:1])):
        ours, scores = pairwise_similarity(a, b, function), of_pairs(a, b).numpy()
        assert (ours.dtype, ours.shape) == (scores.dtype, scores.shape)
        np.testing.assert_allclose(ours, scores, rtol=1e-5, atol=1e-5)


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


@functions
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_tensors_of_any_type_are_taken_also_those_that_are_trained(function: Similarity, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    a, b = (torch.tensor(rows).to(getattr(torch, dtype)).requires_grad_() for rows in (A, B))
    of_numpy = similarity(a.detach().float().numpy(), b.detach().float().numpy(), function)

    np.testing.assert_array_equal(similarity(a, b, function), of_numpy)
    np.testing.assert_array_equal(similarity(list(a), tuple(b), function), of_numpy)
    assert pairwise_similarity(a[0], b[0], function).shape == ()
    with pytest.raises(InputError, match=r"expected \(n, dim\) twice, got \(7, 12\) and \(5, 12\)"):
        pairwise_similarity(a, list(b), function)


NO_VECTORS: list[Any] = [
    ("abc", r"expected numbers, \(n, dim\) or \(dim,\), got str: <U3 are no real numbers"),
    ("1.5", "got str: <U3 are no real numbers"),
    (["1", "2"], "got list: <U1 are no real numbers"),
    ([[1.0, 2.0], [3.0]], "got list: .* inhomogeneous shape"),
    ([None, 1.0], "got list: object are no real numbers"),
    (object(), "got object: object are no real numbers"),
    ({"a": 1}, "got dict: object are no real numbers"),
    (np.array([1j]), "got ndarray: complex128 are no real numbers"),
    ([datetime.timedelta(1)], "got list: .* are no real numbers"),
    (1.5, r"expected \(n, dim\) or \(dim,\), got \(\)"),
    ([], r"expected \(n, dim\) or \(dim,\), got \(0,\)"),
    ([[], []], r"expected \(n, dim\) or \(dim,\), got \(2, 0\)"),
]


@pytest.mark.parametrize(("given", "said"), NO_VECTORS)
def test_what_is_no_vectors_is_refused_on_either_side(given: Any, said: str) -> None:
    for score in (similarity, pairwise_similarity):
        for pair in ((given, B), (B, given), (given, given)):
            with pytest.raises(InputError, match=f"similarity: .*{said}"):
                score(*pair)


def test_a_tensor_without_numbers_is_refused() -> None:
    torch = pytest.importorskip("torch")
    for tensor in (torch.ones(2, 3, device="meta"), torch.eye(3).to_sparse()):
        with pytest.raises(InputError, match=r"similarity: expected numbers, .* got Tensor: "):
            similarity(tensor, tensor)
