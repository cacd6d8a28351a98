"""The attention's output changed within each head, exactly, so that all of a head's channels are of one size.

Attention adds up rows of values: what a matrix does to the values of a head, it does to the head's output. So an
invertible matrix may be folded into the values' weights, and its inverse into the weights that read the output.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mexma_export.quantize.statistics import InputStatistics

Floats = NDArray[np.float32]
Matrices = NDArray[np.float64]
MIN_SHARE = 1e-6
"""A direction counts as no less than this share of the mean of all: a dead one is not blown up."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadTransform:
    """One invertible matrix a head."""

    matrices: Matrices
    """float64 `(heads, size, size)`."""
    inverses: Matrices

    def done(self, x: Floats) -> Floats:
        """`x`, float32 `(..., heads x size)`, times the matrices."""
        return _times(x, self.matrices).astype(np.float32)

    def undone(self, weight: Floats) -> Floats:
        """The inverses times `weight`, float32 `(heads x size, out)`: `done(x) @ undone(weight)` is `x @ weight`."""
        return _times(weight.T, self.inverses.transpose(0, 2, 1)).T.astype(np.float32)


def head_transform(statistics: InputStatistics, weight: Floats, n_heads: int) -> HeadTransform:
    """What quantization adds least to, of an attention's output that `weight`, float32 `(in, out)`, reads.

    Noise of one size in all channels, in proportion to theirs, puts the product off by trace(A'SA) trace(A^-1 M A^-T),
    where S = E[x x'] of a head and M = weight weight'. Of all A this is least for S^-1/2 (S^1/2 M S^1/2)^1/4 Q with
    any orthogonal Q: both factors then are the trace of one matrix. Q is that matrix's eigenvectors, then a Hadamard
    matrix, which gives all channels the same mean square (rotations by it: QuaRot, arXiv:2404.00456).
    """
    size = len(weight) // n_heads
    x = statistics.sample.astype(np.float64).reshape(-1, n_heads, size)
    rows = weight.astype(np.float64).reshape(n_heads, size, -1)
    moments = _lifted(np.einsum("t,thi,thj->hij", statistics.sample_share, x, x, optimize=True))
    gains = _lifted(rows @ rows.transpose(0, 2, 1))
    values, vectors = np.linalg.eigh(moments)
    roots = (vectors * values[:, np.newaxis] ** 0.5) @ vectors.transpose(0, 2, 1)
    inverse_roots = (vectors * values[:, np.newaxis] ** -0.5) @ vectors.transpose(0, 2, 1)
    values, vectors = np.linalg.eigh(roots @ gains @ roots)
    values = np.maximum(values, MIN_SHARE**2 * values.max())[:, np.newaxis]
    hadamard = _hadamard(size)
    return HeadTransform(
        matrices=inverse_roots @ (vectors * values**0.25) @ hadamard,
        inverses=hadamard.T @ (vectors * values**-0.25).transpose(0, 2, 1) @ roots,
    )


def transformed(statistics: InputStatistics, transform: HeadTransform) -> InputStatistics:
    """Statistics of `transform.done(x)`; its range is that of the sample, which has the extreme tokens."""
    sample = transform.done(statistics.sample)
    covariance = _times(_times(statistics.covariance, transform.matrices).T, transform.matrices)
    return dataclasses.replace(
        statistics, lowest=sample.min(axis=0), highest=sample.max(axis=0), covariance=covariance, sample=sample
    )


def _times(x: Floats | NDArray[np.float64], matrices: Matrices) -> NDArray[np.float64]:
    heads = x.reshape(*x.shape[:-1], len(matrices), 1, -1)
    result: NDArray[np.float64] = (heads @ matrices).reshape(x.shape)
    return result


def _lifted(matrices: Matrices) -> Matrices:
    size = matrices.shape[-1]
    mean = np.trace(matrices, axis1=1, axis2=2).mean() / size
    result: Matrices = matrices + (MIN_SHARE * mean or 1.0) * np.eye(size)
    return result


def _hadamard(size: int) -> NDArray[np.float64]:
    """Orthogonal, `(size, size)`, all entries of one size where that is a power of two (Sylvester's construction)."""
    matrix = np.ones((1, 1))
    while size % (2 * len(matrix)) == 0:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    n = len(matrix)
    return np.kron(matrix / np.sqrt(n), np.eye(size // n))
