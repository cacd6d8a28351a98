from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mexma_runtime import InputError
from mexma_runtime.quantized_vectors import VectorPrecision, quantize_vectors
from mexma_runtime.types import Vectors

numbers = st.floats(-8, 8, width=32)


@pytest.mark.parametrize("precision", VectorPrecision)
@given(vectors=arrays(np.float32, st.tuples(st.integers(2, 9), st.integers(1, 20)), elements=numbers))
def test_numbers_are_those_of_sentence_transformers(precision: VectorPrecision, vectors: Vectors) -> None:
    theirs = pytest.importorskip("sentence_transformers.util").quantize_embeddings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs(vectors, precision.value)

    got = quantize_vectors(vectors, precision)

    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("precision", [VectorPrecision.BINARY, VectorPrecision.UBINARY])
def test_bits_of_one_vector_are_those_of_its_row(precision: VectorPrecision) -> None:
    rows = np.random.default_rng(0).standard_normal((3, 13)).astype(np.float32)

    np.testing.assert_array_equal(quantize_vectors(rows[1], precision), quantize_vectors(rows, precision)[1])


@pytest.mark.parametrize("precision", [VectorPrecision.INT8, VectorPrecision.UINT8])
def test_one_vector_has_no_range(precision: VectorPrecision) -> None:
    row = np.ones(4, np.float32)
    for single in (row, row[None]):
        with pytest.raises(InputError, match=rf"^precision '{precision.value}' takes the range .* embed many at once"):
            quantize_vectors(single, precision)


@pytest.mark.parametrize(
    ("precision", "dtype", "dim"),
    [
        ("float32", "float32", 12),
        ("int8", "int8", 12),
        ("uint8", "uint8", 12),
        ("binary", "int8", 2),
        ("ubinary", "uint8", 2),
    ],
)
def test_no_vectors_have_the_form_of_some(precision: str, dtype: str, dim: int) -> None:
    empty = quantize_vectors(np.zeros((0, 12), np.float32), VectorPrecision(precision))

    assert (empty.dtype, empty.shape) == (np.dtype(dtype), (0, dim))
