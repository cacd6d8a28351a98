"""Random weights of a stand-in: what each tensor is drawn from, and the stream that writes one safetensors file.

Weights are normal with variance `gain² / fan-in`, which keeps activations at the same size in a model of any width (at
1024 it is 1.5 times the 0.02 of transformers' initialisation). Four choices keep unrelated sentences apart: mean cosine
0.59 in `mexma`, 0.75 in `small`, 0.89 in `tiny`, where plain 0.02 gives 0.96 to 1.00. Tokens of one sentence stay apart
as well, and fp32 stays within 1e-5 of fp64:

- queries and keys have gain 1.5, so that attention chooses instead of averaging;
- values and the attention's output have gain 0.7, so that a token is not drowned by what it attends to;
- rows of FFN-down sum to zero, so that the mean of GELU does not push all tokens in one direction;
- positions and token types vary half as much as words.

Biases, gammas and betas vary a little, so that a forgotten or swapped one shows.

Outliers are planted in two places. As in RoBERTa (Kovaleva et al. 2021, "BERT Busters"), a few hidden dimensions (3 of
1024) have a huge beta, of either sign, in every LayerNorm and so live through all layers; but not in the last one, or
they would decide every cosine. The products read them weakly and the other gammas make up for the variance they take,
or they, being nearly constant, would drown every token. And after GELU a few channels of each layer (4 of 4096) are
mostly zero and now and then far above all others: the tail in which int8 is lost.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mexma_export.checkpoint.config import ModelConfig
from mexma_export.checkpoint.naming import expected_tensors
from mexma_runtime.bundle.manifest import PositionScheme

OUTLIER_SIZE = 20.0
"""Size of a planted hidden dimension, where the others have a deviation of about 1."""
RARE_SCALE, RARE_SHIFT = 8.0, -8.0
"""What a planted channel of FFN-up is multiplied by and shifted by."""

_CHUNK_ELEMENTS = 1 << 22
_MAX_CHUNKS_AHEAD = 4
_N_THREADS = 2
_GAINS = {"attention.query": 1.5, "attention.key": 1.5, "attention.value": 0.7, "attention.output": 0.7}


@dataclass(frozen=True, kw_only=True)
class Plant:
    """One row of a tensor that becomes `row * scale + shift`."""

    row: int
    scale: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Outliers:
    """Where outliers are planted."""

    dims: tuple[int, ...]
    """Hidden dimensions."""
    channels: tuple[tuple[int, ...], ...]
    """Channels of the FFN, by layer."""


@dataclass(frozen=True, kw_only=True)
class Fill:
    """One tensor and what it is drawn from."""

    name: str
    """As transformers calls it."""
    shape: tuple[int, ...]
    std: float
    mean: float = 0.0
    centred: bool = False
    """Each row is shifted to sum to zero."""
    zero_row: int | None = None
    weak_columns: tuple[int, ...] = ()
    """Columns divided by `OUTLIER_SIZE`."""
    plants: tuple[Plant, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Bytes of the weights in fp32."""
        return 4 * math.prod(self.shape)


def fills(config: ModelConfig, *, has_pooler: bool, outliers: Outliers | None = None) -> list[Fill]:
    """All tensors of the model in the order of the file, which is by name."""
    tensors = [(tensor.theirs, tensor.ours, tensor.shape) for tensor in expected_tensors(config)]
    if has_pooler:
        tensors.append(("pooler.dense.weight", "pooler.weight", (config.hidden_size, config.hidden_size)))
        tensors.append(("pooler.dense.bias", "pooler.bias", (config.hidden_size,)))
    made = []
    for theirs, ours, shape in sorted(tensors):
        fill = _fill(config, theirs, ours, shape)
        made.append(_plant(config, fill, ours, outliers) if outliers else fill)
    return made


def choose_outliers(config: ModelConfig, seed: int) -> Outliers:
    """Where `fills` plants outliers for a seed."""
    random = _generator(seed, "outliers")

    def choose(n: int, share: int) -> tuple[int, ...]:
        return tuple(int(i) for i in random.choice(n, max(1, n // share), replace=False))

    dims = choose(config.hidden_size, 340)
    return Outliers(dims=dims, channels=tuple(choose(config.ffn_size, 1024) for _ in range(config.n_layers)))


def header(tensors: Sequence[Fill]) -> bytes:
    """The first bytes of the file, as safetensors writes them: length, JSON, spaces up to a multiple of eight."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for fill in tensors:
        start, end = end, end + fill.n_bytes
        entries[fill.name] = {"dtype": "F32", "shape": fill.shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def file_size(tensors: Sequence[Fill]) -> int:
    """Bytes of the file that `write_weights` writes."""
    return len(header(tensors)) + sum(fill.n_bytes for fill in tensors)


def write_weights(
    path: Path, tensors: Sequence[Fill], *, seed: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """Draw `tensors` and write them to the new file `path`, a few chunks of 16 MB in memory at a time.

    Every chunk has its own generator, keyed by seed, name and row: the bytes depend on no order and no thread count.
    """
    total = file_size(tensors)
    with path.open("xb") as file, ThreadPoolExecutor(_N_THREADS) as pool:

        def write(chunk: Future[NDArray[np.float32]]) -> None:
            file.write(chunk.result().data)
            if progress:
                progress(file.tell(), total)

        file.write(header(tensors))
        ahead: deque[Future[NDArray[np.float32]]] = deque()
        for fill, start, stop in _chunks(tensors):
            ahead.append(pool.submit(_draw, fill, start, stop, seed))
            if len(ahead) > _MAX_CHUNKS_AHEAD:
                write(ahead.popleft())
        while ahead:
            write(ahead.popleft())


def _fill(config: ModelConfig, theirs: str, ours: str, shape: tuple[int, ...]) -> Fill:
    padded_tables = ["embeddings.word"]
    if config.position_scheme is PositionScheme.AFTER_PADDING:
        padded_tables.append("embeddings.position")
    mean, std = 0.0, 0.02
    if ours in ("embeddings.position", "embeddings.token_type"):
        std = 0.01
    elif ours.endswith((".gamma", ".beta")):
        mean, std = float(ours.endswith(".gamma")), 0.05
    elif ours.endswith(".weight"):
        module = ours.removesuffix(".weight").split(".", 2)[-1]
        std = _GAINS.get(module, 1.0) / math.sqrt(shape[1])
    return Fill(
        name=theirs,
        shape=shape,
        mean=mean,
        std=std,
        centred=ours.endswith("ffn.down.weight"),
        zero_row=config.padding_id if ours in padded_tables else None,
    )


def _plant(config: ModelConfig, fill: Fill, ours: str, outliers: Outliers) -> Fill:
    """The same tensor with its share of the outliers."""
    if ours.endswith(".gamma"):
        share = len(outliers.dims) * OUTLIER_SIZE**2 / config.hidden_size
        # 1.5 is the variance of a residual and what a block adds to it. Words bring no outliers.
        mean = 1.0 if ours == "embeddings.norm.gamma" else math.sqrt(1 + share / 1.5)
        return replace(fill, mean=mean, plants=tuple(Plant(row=dim, scale=1 / OUTLIER_SIZE) for dim in outliers.dims))
    if ours.endswith(".beta"):
        if ours == f"layer.{config.n_layers - 1}.ffn.norm.beta":
            return fill
        return replace(
            fill, plants=tuple(Plant(row=dim, shift=OUTLIER_SIZE * (-1) ** i) for i, dim in enumerate(outliers.dims))
        )
    if ours.endswith(("query.weight", "key.weight", "value.weight", "pooler.weight")):
        return replace(fill, weak_columns=outliers.dims)
    if ".ffn.up." in ours:
        channels = outliers.channels[int(ours.split(".")[1])]
        if ours.endswith(".bias"):
            return replace(fill, plants=tuple(Plant(row=channel, shift=RARE_SHIFT) for channel in channels))
        plants = tuple(Plant(row=channel, scale=RARE_SCALE) for channel in channels)
        return replace(fill, weak_columns=outliers.dims, plants=plants)
    return fill


def _chunks(tensors: Sequence[Fill]) -> Iterator[tuple[Fill, int, int]]:
    for fill in tensors:
        n_rows = max(1, _CHUNK_ELEMENTS // math.prod(fill.shape[1:]))
        for start in range(0, fill.shape[0], n_rows):
            yield fill, start, min(start + n_rows, fill.shape[0])


def _draw(fill: Fill, start: int, stop: int, seed: int) -> NDArray[np.float32]:
    """Rows `start` to `stop` of the tensor."""
    values = _generator(seed, fill.name, start).standard_normal((stop - start, *fill.shape[1:]), dtype=np.float32)
    values *= np.float32(fill.std)
    if fill.mean:
        values += np.float32(fill.mean)
    if fill.centred:
        values -= values.mean(axis=1, keepdims=True)
    if fill.zero_row is not None and start <= fill.zero_row < stop:
        values[fill.zero_row - start] = 0
    if fill.weak_columns:
        values[:, list(fill.weak_columns)] /= np.float32(OUTLIER_SIZE)
    for plant in fill.plants:
        if start <= plant.row < stop:
            row = plant.row - start
            values[row] = values[row] * np.float32(plant.scale) + np.float32(plant.shift)
    return values


def _generator(seed: int, *key: object) -> np.random.Generator:
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest, "little")))
