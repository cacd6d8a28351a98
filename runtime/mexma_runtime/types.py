"""The values that cross the runtime's boundaries: ragged token ids, vectors and the words of the field."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from mexma_runtime.errors import InputError

Vectors = NDArray[np.float32]


class Precision(StrEnum):
    """The number format that an engine computes its matrix products in."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    FP8 = "fp8"
    """E4M3, for TensorRT on GPUs that have it."""


FLOATS = (Precision.FP32, Precision.FP16)
QUANTIZED = frozenset((Precision.INT8, Precision.FP8))


class Dialect(StrEnum):
    """The set of ONNX operators that a graph is written in."""

    PORTABLE = "portable"
    """Standard ONNX operators alone: for TensorRT, OpenVINO and any other runtime."""
    FUSED = "fused"
    """onnxruntime's own operators, on CPU and CUDA."""
    PACKED = "packed"
    """onnxruntime's own operators on CUDA alone, over sentences end to end: no padding, and never int8."""


PADDED_DIALECTS = (Dialect.PORTABLE, Dialect.FUSED)
"""Those whose inputs are `(batch, length)`, padded; a CPU runs no others, and int8 is written in no others."""


class Pooling(StrEnum):
    """How the vectors of all tokens become the one of the sentence."""

    CLS = "cls"
    MEAN = "mean"


class Similarity(StrEnum):
    """How two vectors are compared: the larger, the more alike. sentence-transformers' names."""

    COSINE = "cosine"
    DOT = "dot"
    EUCLIDEAN = "euclidean"
    """Their Euclidean distance, negated."""
    MANHATTAN = "manhattan"
    """The sum of the differences of their numbers, negated."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ragged:
    """Sentences of token ids laid end to end; padding is a backend's business, not the data's."""

    ids: NDArray[np.int32]
    """int32 `(total,)`: all tokens, special ones included."""
    offsets: NDArray[np.int64]
    """int64 `(n + 1,)`: sentence `i` is `ids[offsets[i]:offsets[i + 1]]`."""

    def __post_init__(self) -> None:
        for name in ("ids", "offsets"):
            if not isinstance(value := getattr(self, name), np.ndarray):
                raise InputError(f"Ragged.{name}: expected a NumPy array, got {type(value).__name__}")
        if self.ids.dtype != np.int32 or self.ids.ndim != 1:
            raise InputError(f"Ragged.ids: expected int32 (total,), got {self.ids.dtype} {self.ids.shape}")
        if self.offsets.dtype != np.int64 or self.offsets.ndim != 1 or self.offsets.size == 0:
            raise InputError(f"Ragged.offsets: expected int64 (n + 1,), got {self.offsets.dtype} {self.offsets.shape}")
        is_whole = self.offsets[0] == 0 and self.offsets[-1] == self.ids.size
        if not is_whole or (self.offsets.size > 2 and np.any(np.diff(self.offsets) < 0)):
            raise InputError(f"Ragged.offsets: expected to rise from 0 to {self.ids.size}, the number of ids")

    def __len__(self) -> int:
        return self.offsets.size - 1

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        """The ids of one sentence, a view: int32 `(length,)`."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 `(n,)`: tokens a sentence."""
        return self.offsets[1:] - self.offsets[:-1]

    @classmethod
    def from_sequences(cls, sequences: Iterable[Sequence[int]]) -> Ragged:
        """Lay sequences of token ids end to end."""
        arrays = [_as_ids(sequence, index) for index, sequence in enumerate(sequences)]
        ids = np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int32)
        return cls.from_lengths(ids, [array.size for array in arrays])

    @classmethod
    def from_lengths(cls, ids: NDArray[np.int32], lengths: Sequence[int] | NDArray[np.int64]) -> Ragged:
        """Sentences of these lengths whose ids, int32 `(total,)`, lie end to end already."""
        return cls(ids=ids, offsets=_offsets(lengths))

    @classmethod
    def joined(cls, several: Sequence[Ragged]) -> Ragged:
        """The sentences of all, in order; not copied where there is but one."""
        if len(several) == 1:
            return several[0]
        lengths: list[int] = []
        for one in several:
            lengths += [one.ids.size] if len(one) == 1 else one.lengths.tolist()
        return cls.from_lengths(np.concatenate([one.ids for one in several]), lengths)

    def select(self, rows: NDArray[np.int64]) -> Ragged:
        """The sentences `rows` (int64 `(m,)`, one or more), not copied where they are neighbours in order."""
        if are_neighbours(rows):
            return self.part(int(rows[0]), int(rows[0]) + rows.size)
        return self.take(rows)

    def part(self, start: int, end: int) -> Ragged:
        """The sentences from `start` to `end`, not copied."""
        if (start, end) == (0, len(self)):
            return self
        offsets = self.offsets[start : end + 1]
        return Ragged(ids=self.ids[offsets[0] : offsets[-1]], offsets=offsets - offsets[0])

    def take(self, rows: NDArray[np.int64]) -> Ragged:
        """The sentences `rows` (int64 `(m,)`, any order, repeats allowed), copied."""
        lengths = self.lengths[rows]
        offsets = _offsets(lengths)
        source = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Ragged(ids=self.ids[source], offsets=offsets)


def are_neighbours(rows: NDArray[np.int64]) -> bool:
    """Whether each of `rows`, int64 `(m,)`, follows the one before it."""
    return rows.size == 1 or bool(np.all(np.diff(rows) == 1))


def is_unicode(text: str) -> bool:
    """Whether `text` has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_ids(sequence: Sequence[int], index: int) -> NDArray[np.int32]:
    """int32 `(length,)`; InputError where something is no whole number of 32 bits."""
    found = np.asarray(sequence)
    if found.size and (found.dtype.kind not in "iu" or found.ndim != 1):
        raise InputError(f"expected a sequence of whole numbers, got {found.dtype} {found.shape}", index=index)
    ids = found.astype(np.int32).reshape(-1)
    if not np.array_equal(ids, found.reshape(-1)):
        raise InputError("expected token ids of 32 bits", index=index)
    return ids


def _offsets(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
