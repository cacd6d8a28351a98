"""How a ragged batch lies in the fixed arrays that a graph reads on a device: packed end to end, or padded. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mexma_runtime.backends.padding import INPUT_NAMES, fill_padded, position_ids
from mexma_runtime.bundle.manifest import TextEntry
from mexma_runtime.types import Ragged

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The room that a run has: a batch fits into any that has as much of each."""

    n_sentences: int
    longest: int
    """Tokens of the longest sentence."""
    n_tokens: int
    """Rows that are computed: all tokens end to end, or padded ones."""
    above_mean_tokens: int = 0
    """Of a bucket: it is for batches whose sentences have more tokens than this, on average."""

    def holds(self, other: Shape) -> bool:
        """Whether what needs `other` fits into this."""
        return (
            other.n_sentences <= self.n_sentences and other.longest <= self.longest and other.n_tokens <= self.n_tokens
        )

    def is_for(self, batch: Shape) -> bool:
        """Whether a batch that needs `batch` fits, and is of the mean length that this bucket is for."""
        return self.holds(batch) and batch.n_tokens > self.above_mean_tokens * batch.n_sentences


def _longest(batch: Ragged) -> int:
    return batch.ids.size if len(batch) == 1 else int(batch.lengths.max())


_ONE = Shape(n_sentences=1, longest=1, n_tokens=1)


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One input of the graph, as it is for one Shape."""

    dtype: type[np.generic]
    shape: tuple[int, ...]


class Layout(Protocol):
    """One way for a batch to lie."""

    normalizes: bool
    """Whether the graph itself gives vectors length 1, where it is told to."""

    @property
    def names(self) -> set[str]:
        """Every input that it can feed."""

    def shape_of(self, batch: Ragged) -> Shape:
        """The least room that holds `batch`."""

    def fullest(self, capacity: Shape) -> Shape:
        """The shape that takes the most to compute of all that `capacity` holds."""

    def widest(self, capacity: Shape) -> Shape:
        """The shape whose inputs take the most memory of all that `capacity` holds."""

    def specs(self, shape: Shape) -> dict[str, ArraySpec]:
        """The inputs that `fill` writes."""

    def constant_specs(self, shape: Shape) -> dict[str, ArraySpec]:
        """The others, of which only the shape matters: zeros, never written."""

    def fill(self, batch: Ragged, arrays: Arrays, *, normalize: bool) -> None:
        """Write `batch` into `arrays`, which are of `specs(shape)` for a shape that holds it. Past it: harmless."""


class PackedLayout:
    """All tokens end to end: the inputs of the packed dialect (graph/layouts.py of the export describes each)."""

    normalizes: bool = True

    def __init__(self, text: TextEntry) -> None:
        self._text = text

    @property
    def names(self) -> set[str]:
        """Every input that it can feed."""
        return {*self.specs(_ONE), *self.constant_specs(_ONE)}

    def shape_of(self, batch: Ragged) -> Shape:
        """As many rows as tokens."""
        return Shape(n_sentences=len(batch), longest=_longest(batch), n_tokens=batch.ids.size)

    def fullest(self, capacity: Shape) -> Shape:
        """The whole `capacity`: every row is a token."""
        return capacity

    def widest(self, capacity: Shape) -> Shape:
        """The whole `capacity`: one number a token and a sentence."""
        return capacity

    def specs(self, shape: Shape) -> dict[str, ArraySpec]:
        """int32, but for the flag."""
        tokens = ArraySpec(dtype=np.int32, shape=(shape.n_tokens,))
        return {
            "input_ids": tokens,
            "position_ids": tokens,
            "cumulative_sequence_length": ArraySpec(dtype=np.int32, shape=(shape.n_sentences + 1,)),
            "first_token": ArraySpec(dtype=np.int32, shape=(shape.n_sentences,)),
            "normalize": ArraySpec(dtype=np.bool_, shape=(1,)),
        }

    def constant_specs(self, shape: Shape) -> dict[str, ArraySpec]:
        """token_offset: the batch and the longest length are read off its shape."""
        return {"token_offset": ArraySpec(dtype=np.int32, shape=(shape.n_sentences, shape.longest))}

    def fill(self, batch: Ragged, arrays: Arrays, *, normalize: bool) -> None:
        """Sentences past the batch are empty; tokens past it belong to no sentence."""
        n, total, text = len(batch), batch.ids.size, self._text
        ids, positions, bounds = (arrays[name] for name in ("input_ids", "position_ids", "cumulative_sequence_length"))
        ids[:total], ids[total:] = batch.ids, text.padding_id
        positions[:total], positions[total:] = position_ids(batch, text), 0
        bounds[: n + 1], bounds[n + 1 :] = batch.offsets, total
        first = arrays["first_token"]
        first[:n], first[n:] = batch.offsets[:-1], 0
        arrays["normalize"][0] = normalize


class PaddedLayout:
    """`(sentences, longest)`, padded on the right: the inputs of the portable and the fused dialect."""

    normalizes: bool = False

    def __init__(self, text: TextEntry) -> None:
        self._text = text

    @property
    def names(self) -> set[str]:
        """Every input that it can feed."""
        return set(INPUT_NAMES)

    def shape_of(self, batch: Ragged) -> Shape:
        """As many rows as sentences times the longest."""
        longest = _longest(batch)
        return Shape(n_sentences=len(batch), longest=longest, n_tokens=len(batch) * longest)

    def fullest(self, capacity: Shape) -> Shape:
        """The longest sentences, and as many as have room."""
        n = capacity.n_tokens // capacity.longest
        return Shape(n_sentences=n, longest=capacity.longest, n_tokens=n * capacity.longest)

    def widest(self, capacity: Shape) -> Shape:
        """Short ones: the longest do not always fill it to the last token."""
        return Shape(n_sentences=capacity.n_tokens, longest=1, n_tokens=capacity.n_tokens)

    def specs(self, shape: Shape) -> dict[str, ArraySpec]:
        """int32 `(sentences, longest)` each."""
        spec = ArraySpec(dtype=np.int32, shape=(shape.n_sentences, shape.longest))
        return dict.fromkeys(INPUT_NAMES, spec)

    def constant_specs(self, shape: Shape) -> dict[str, ArraySpec]:
        """Nothing: every input is written."""
        return {}

    def fill(self, batch: Ragged, arrays: Arrays, *, normalize: bool) -> None:
        """Sentences past the batch have one token: attention over none is 0 / 0."""
        fill_padded(batch, arrays, self._text)
