"""A whole model quantized, a layer at a time: run it on calibration text, search each group, write its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mexma_export.checkpoint.checkpoint import Checkpoint
from mexma_export.graph.input_quantization import Activation, QuantizedInput
from mexma_export.graph.linear_groups import PARTS, linears_of
from mexma_export.quantize.calibration import Calibration
from mexma_export.quantize.channel_order import arranged
from mexma_export.quantize.channel_splitting import n_split_channels, split_channels, split_counts
from mexma_export.quantize.head_transforms import head_transform, transformed
from mexma_export.quantize.layers import Layer, embed_tokens, layer_tensors, open_layer
from mexma_export.quantize.recipe import Recipe
from mexma_export.quantize.search import Errors, GroupResult, quantize_group
from mexma_export.quantize.statistics import InputStatistics, Observer
from mexma_runtime.bundle.manifest import ProductMode
from mexma_runtime.types import Dialect

Floats = NDArray[np.float32]
Store = Callable[[str, NDArray[Any]], None]
"""Takes a matrix under the name that graphs will know it by."""
FLOAT_SUFFIX = ".float"
"""Of the stored name of a weight that is left in float."""


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What the search found for one group of products in one dialect."""

    alpha: float | None
    """SmoothQuant's; None: not smoothed."""
    errors: Errors


@dataclass(frozen=True, kw_only=True, eq=False)
class GraphParts:
    """What the graph of one dialect is written from, beside the stored matrices."""

    inputs: dict[str, QuantizedInput] = field(default_factory=dict)
    """By group."""
    vectors: dict[str, Floats] = field(default_factory=dict)
    """Biases, gammas, betas and the scales of weights, by name."""
    results: dict[str, SearchResult] = field(default_factory=dict)
    """By group, without those that are left in float."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RecipeRun:
    """One recipe, and where what comes of it goes."""

    recipe: Recipe
    activation: Activation
    store: Store
    """Takes quantized weights, and those of products left in float: (in, out)."""
    graphs: Mapping[Dialect, GraphParts]
    """Filled, a layer at a time."""
    floats: frozenset[str] = frozenset()
    """Groups left in float whatever the recipe says."""


def quantize_model(
    checkpoint: Checkpoint,
    runs: Sequence[RecipeRun],
    calibration: Calibration,
    *,
    seed: int,
    n_threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Quantize every layer by each recipe of `runs`, over one run of the fp32 model on the calibration text.

    Each product sees what it would see in the fp32 model.
    """
    batches = [hidden for _, hidden in embed_tokens(checkpoint, calibration)]
    n_layers = checkpoint.config.n_layers
    for layer in range(n_layers):
        tensors = layer_tensors(checkpoint, layer)
        opened = open_layer(checkpoint, layer, tensors, n_threads=n_threads)
        statistics = _observe(opened, batches, layer, seed=seed)
        del opened
        for run in runs:
            _Layer(f"layer.{layer}", tensors, statistics, run, checkpoint.config.n_heads).quantize()
        if progress:
            progress(layer + 1, n_layers)


def _observe(opened: Layer, batches: list[Floats], layer: int, *, seed: int) -> dict[str, InputStatistics]:
    """Statistics of each group's input by part; `batches` become the layer's output."""
    observers: dict[str, Observer] = {}
    shapes = [hidden.shape[:2] for hidden in batches]
    for index, hidden in enumerate(batches):
        *inputs, output = opened(hidden).values()
        for part, values in zip(PARTS, [hidden, *inputs], strict=True):
            if part not in observers:
                is_pooled_row = values.shape[1] != hidden.shape[1]
                weights = np.ones(sum(n for n, _ in shapes), np.float32) if is_pooled_row else _token_weights(shapes)
                observers[part] = Observer(values.shape[2], weights, seed=seed + layer)
            observers[part].add(values.reshape(-1, values.shape[2]))
        batches[index] = output
    return {part: observer.finish() for part, observer in observers.items()}


def _token_weights(shapes: Sequence[tuple[int, int]]) -> Floats:
    """float32 `(tokens,)` for batches of `n` texts of `length` tokens: 1 / sqrt(length), midway between counting all
    tokens alike, where paragraphs drown queries, and all texts alike."""
    return np.concatenate([np.full(n * length, length**-0.5, np.float32) for n, length in shapes])


class _Layer:
    """One layer on its way into the graphs."""

    def __init__(
        self,
        path: str,
        tensors: Mapping[str, Floats],
        statistics: Mapping[str, InputStatistics],
        run: RecipeRun,
        n_heads: int,
    ) -> None:
        self._path, self._n_heads = path, n_heads
        self._original_tensors, self._original_statistics = tensors, statistics
        self._tensors, self._statistics = dict(tensors), dict(statistics)
        self._recipe, self._activation, self._graphs = run.recipe, run.activation, run.graphs
        self._floats, self._store = run.floats, run.store

    def quantize(self) -> None:
        """All groups; the attention's output first, since its smoothing becomes part of the values' weights."""
        for parts in self._graphs.values():
            parts.vectors.update((n, a) for n, a in self._tensors.items() if n.endswith((".gamma", ".beta")))
        self._transform_heads()
        self._group("attention.output", is_foldable=True)
        self._group("attention.qkv")
        splits = self._lay_out_ffn()
        self._group("ffn.up")
        self._group("ffn.down", splits=splits)
        for parts in self._graphs.values():
            biases = [parts.vectors[f"{linear}.bias"] for linear in linears_of(f"{self._path}.attention.qkv")]
            parts.vectors[f"{self._path}.attention.bias"] = np.concatenate(biases)

    def _transform_heads(self) -> None:
        """Give the channels of each head one size, by weights before and after the attention."""
        output = f"{self._path}.attention.output"
        is_float = output in self._floats or all(
            self._recipe.mode(dialect, output) is ProductMode.FLOAT for dialect in self._graphs
        )
        if not self._recipe.head_transforms or is_float:
            return
        weight, statistics = self._tensors[f"{output}.weight"], self._statistics["attention.output"]
        transform = head_transform(statistics, weight, self._n_heads)
        self._statistics["attention.output"] = transformed(statistics, transform)
        self._tensors[f"{output}.weight"] = transform.undone(weight)
        self._change_values(transform.done)

    def _change_values(self, change: Callable[[Floats], Floats]) -> None:
        """Change the values' weight and bias: attention mixes tokens, not channels, so its output follows."""
        for part in ("weight", "bias"):
            name = f"{self._path}.attention.value.{part}"
            self._tensors[name] = change(self._tensors[name])

    def _lay_out_ffn(self) -> Floats | None:
        """Split the FFN's largest channels, and put all in an order that scale groups like; both exactly.

        Returns into how many parts each was split, float32 `(ffn,)`.
        """
        up, down = f"{self._path}.ffn.up", f"{self._path}.ffn.down"
        weight, statistics = self._tensors[f"{down}.weight"], self._statistics["ffn.down"]
        if down in self._floats:
            return None
        # Parts of a float are as coarse as the whole.
        n_more = 0 if self._activation is Activation.E4M3 else n_split_channels(self._recipe, down, len(weight))
        counts = split_counts(statistics, n_more)
        channels = np.repeat(np.arange(len(counts)), counts)
        splits = counts[channels].astype(np.float32)
        if self._recipe.has_scale_groups(down):
            order = arranged(
                statistics.sample[:, channels],
                statistics.sample_share,
                weight[channels] / splits[:, np.newaxis],
                self._recipe.group_size_for(len(channels)),
            )
            channels, splits = channels[order], splits[order]
        self._statistics["ffn.down"] = split_channels(statistics, channels)
        self._tensors[f"{up}.weight"] = self._tensors[f"{up}.weight"][:, channels]
        self._tensors[f"{up}.bias"] = self._tensors[f"{up}.bias"][channels]
        self._tensors[f"{down}.weight"] = weight[channels] / splits[:, np.newaxis]
        return splits

    def _group(self, part: str, *, is_foldable: bool = False, splits: Floats | None = None) -> None:
        group = f"{self._path}.{part}"
        linears = linears_of(group)
        weight, first = (
            np.concatenate([tensors[f"{linear}.weight"] for linear in linears], axis=1)
            for tensors in (self._tensors, self._original_tensors)
        )
        bias = np.concatenate([self._tensors[f"{linear}.bias"] for linear in linears])
        is_float = group in self._floats
        modes = {d: ProductMode.FLOAT if is_float else self._recipe.mode(d, group) for d in self._graphs}
        quantized = {dialect: mode for dialect, mode in modes.items() if mode is not ProductMode.FLOAT}
        result = None
        if quantized:
            result = quantize_group(
                self._statistics[part],
                weight,
                bias,
                modes=quantized,
                recipe=self._recipe,
                activation=self._activation,
                shiftable=() if is_foldable else self._recipe.channel_shift,
                splits=splits,
                original=(self._original_statistics[part], first),
            )
            self._keep(linears, result)
        if result and is_foldable:
            scale = result.smoothing.scale
            self._change_values(lambda values: values / scale)
            weight = weight * scale[:, np.newaxis]
        for dialect, mode in modes.items():
            if mode is ProductMode.FLOAT:
                self._leave_in_float(dialect, group, weight, bias)
            elif result:
                self._add(dialect, group, result, is_folded=is_foldable)

    def _keep(self, linears: tuple[str, ...], result: GroupResult) -> None:
        for linear, columns in self._columns(linears):
            self._store(f"{linear}.weight", result.weight[:, columns])

    def _leave_in_float(self, dialect: Dialect, group: str, weight: Floats, bias: Floats) -> None:
        parts = self._graphs[dialect]
        parts.inputs[group] = QuantizedInput(mode=ProductMode.FLOAT)
        linears = linears_of(group)
        others = [p for p in self._graphs.values() if p is not parts and group in p.inputs]
        is_stored = any(p.inputs[group].mode is ProductMode.FLOAT for p in others)
        for linear, columns in self._columns(linears):
            parts.vectors[f"{linear}.bias"] = bias[columns]
            if not is_stored:
                self._store(f"{linear}.weight{FLOAT_SUFFIX}", weight[:, columns].astype(self._recipe.float_dtype))

    def _add(self, dialect: Dialect, group: str, result: GroupResult, *, is_folded: bool) -> None:
        parts, smoothing, how = self._graphs[dialect], result.smoothing, result.inputs[dialect]
        if not is_folded and np.any(smoothing.scale != 1):
            how = dataclasses.replace(how, multiplier=np.float32(1) / smoothing.scale)
        parts.inputs[group] = how
        for linear, columns in self._columns(linears_of(group)):
            parts.vectors[f"{linear}.bias"] = result.bias[dialect][columns]
            parts.vectors[f"{linear}.weight.scale"] = result.weight_scale[columns]
        parts.results[group] = SearchResult(alpha=smoothing.alpha, errors=result.errors[dialect])

    def _columns(self, linears: tuple[str, ...]) -> list[tuple[str, slice]]:
        """The columns of each linear layer in the group's weight."""
        columns, start = [], 0
        for linear in linears:
            end = start + self._tensors[f"{linear}.weight"].shape[1]
            columns.append((linear, slice(start, end)))
            start = end
        return columns
