"""What an export writes, as data: jobs from a request, and the job that follows where engines missed their cosine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from mexma_export.bundle.request import ExportRequest, quantized_dialects
from mexma_export.checkpoint.checkpoint import Checkpoint
from mexma_export.graph.input_quantization import Activation
from mexma_export.graph.linear_groups import multiplications
from mexma_export.graph.weights import weights_bytes
from mexma_export.quantize.fit import check_fit
from mexma_export.quantize.recipe import Recipe
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.errors import UsageError
from mexma_runtime.types import Dialect, Precision

MAX_PACKED_HEAD_SIZE = 256
"""FlashAttention's limit."""


@dataclass(frozen=True, kw_only=True)
class FloatJob:
    """The engines of fp32 or fp16: one weights file, and a graph for each dialect."""

    precision: Precision
    dialects: tuple[Dialect, ...]
    n_bytes: int
    """About what it writes, without its graphs."""

    @property
    def needs_fp16(self) -> bool:
        """Whether the weights have to be within the range of fp16."""
        return self.precision is Precision.FP16


@dataclass(frozen=True, kw_only=True)
class QuantizedJob:
    """The engines of one recipe in int8 or fp8: one weights file beside the embeddings', a graph for each dialect."""

    precision: Precision
    dialects: tuple[Dialect, ...]
    recipe: Recipe
    activation: Activation
    seed: int
    min_cosine: float | None
    """The least mean cosine to accept; None: the thresholds alone decide."""
    max_float_share: float
    """Most multiplications, as a share, that may be left in float for it."""
    multiplications: Mapping[str, int]
    """Linear group -> multiplications a token, of all groups of the model."""
    n_bytes: int
    """About what it writes, without its graphs."""
    floats: frozenset[str] = frozenset()
    """Groups to leave in float, whatever the recipe says."""

    @property
    def needs_fp16(self) -> bool:
        """Whether the weights have to be within the range of fp16."""
        return self.recipe.is_for_tensorrt

    @property
    def float_share(self) -> float:
        """The share of all multiplications that `floats` are."""
        return sum(map(self.multiplications.__getitem__, self.floats)) / sum(self.multiplications.values())


EngineJob: TypeAlias = FloatJob | QuantizedJob


def jobs(request: ExportRequest, checkpoint: Checkpoint) -> list[EngineJob]:
    """The jobs of `request`, in the order in which they are written.

    UsageError where the model has no place for what is asked for: a recipe of other products, heads that packed
    attention does not take.
    """
    config = checkpoint.config
    if Dialect.PACKED in request.dialects and request.float_precisions:
        _check_packed_heads(config.head_size)
    n_bytes = {precision: weights_bytes(checkpoint, precision) for precision in (Precision.FP32, Precision.FP16)}
    wanted: list[EngineJob] = [
        FloatJob(precision=precision, dialects=request.dialects, n_bytes=n_bytes[precision])
        for precision in request.float_precisions
    ]
    options = request.quantization
    if options is None:
        return wanted
    dialects, _ = quantized_dialects(request)
    groups = multiplications(config)
    for precision, recipe in options.precisions_and_recipes(request.precisions):
        of_recipe = tuple(dialect for dialect in dialects if dialect in recipe.modes)
        check_fit(recipe, tuple(groups), config, of_recipe)
        # Around fp16 the tables stay fp16, and so do some products.
        of_weights = n_bytes[Precision.FP16] if recipe.is_for_tensorrt else n_bytes[Precision.FP32] // 4
        wanted.append(
            QuantizedJob(
                precision=precision,
                dialects=of_recipe,
                recipe=recipe,
                activation=options.activation_of(precision, recipe),
                seed=options.seed,
                min_cosine=options.min_cosine_of(precision) if request.check_parity else None,
                max_float_share=options.max_float_share_of(precision),
                multiplications=groups,
                n_bytes=of_weights,
            )
        )
    return wanted


def next_job(job: QuantizedJob, engines: Iterable[EngineEntry], cosine: float) -> QuantizedJob | None:
    """`job` again with more products in float; None where its mean `cosine` is met, or no more may be left in float.

    Those of the largest errors that were measured in `engines`, as many as bring the cosine to its bound, as if errors
    added up to its distance from 1; never over the allowed share, at least one if it allows.
    """
    if job.min_cosine is None or cosine >= job.min_cosine:
        return None
    errors = dict.fromkeys(job.multiplications, 0.0)
    for engine in engines:
        for product in engine.quantization.products if engine.quantization else ():
            errors[product.name] = max(errors[product.name], product.error)
    bound = sum(errors.values()) * (1 - job.min_cosine) / (1 - cosine)
    chosen = job
    for group in sorted((group for group in errors if group not in job.floats), key=lambda group: -errors[group]):
        if chosen is not job and sum(error for name, error in errors.items() if name not in chosen.floats) <= bound:
            break
        more = dataclasses.replace(job, floats=chosen.floats | {group})
        if more.float_share <= job.max_float_share:
            chosen = more
    return None if chosen is job else chosen


def _check_packed_heads(head_size: int) -> None:
    """UsageError where CUDA's packed kernels do not serve heads of that size."""
    if head_size % 8 or head_size > MAX_PACKED_HEAD_SIZE:
        raise UsageError(
            f"dialect packed: expected heads of 8, 16, ... {MAX_PACKED_HEAD_SIZE} numbers, which packed attention "
            f"kernels take, got {head_size}: leave it out (--dialect portable --dialect fused)"
        )
