"""Writing the engines of an export: weights and graphs under their final names, and their entries in the manifest."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import onnx_ir as ir

from mexma_export.bundle.staging import Staging
from mexma_export.checkpoint.checkpoint import Checkpoint
from mexma_export.checkpoint.config import ModelConfig
from mexma_export.graph.encoder import OUTPUT, write_encoder
from mexma_export.graph.linear import FLOAT_PRODUCTS, Products, int8_products
from mexma_export.graph.linear_groups import all_groups, linears_of, n_multiplications
from mexma_export.graph.weights import WeightsFile, WeightsWriter, write_fp16_tables, write_int8_tables, write_weights
from mexma_export.quantize.calibration import Calibration, load_calibration
from mexma_export.quantize.channel_splitting import n_copies
from mexma_export.quantize.model import FLOAT_SUFFIX, DialectPlan, QuantizationJob, quantize_model
from mexma_export.quantize.options import QuantizationOptions
from mexma_export.quantize.recipe import Recipe
from mexma_runtime.bundle.bundle import sha256_of
from mexma_runtime.bundle.manifest import (
    GROUP_STEP,
    EngineEntry,
    FileEntry,
    Manifest,
    ProductMode,
    Quantization,
    QuantizedProduct,
    space_fingerprint,
)
from mexma_runtime.errors import UsageError
from mexma_runtime.hardware import detect_hardware
from mexma_runtime.terminal import Progress
from mexma_runtime.types import Dialect, Precision

MIN_ONNXRUNTIME = "1.20.1"
"""The oldest release that runs both dialects in both precisions; 1.20.0 fails in fp16 SkipLayerNormalization."""
MIN_ONNXRUNTIME_PACKED = "1.31"
"""The release whose kernels packed graphs were written for."""
MIN_ONNXRUNTIME_AROUND_FP16 = "1.31"
"""The only release that Q/DQ around fp16 was run with."""
MIN_TENSORRT = "10.16"
"""The oldest release that the builder's calls and the graphs' operators were checked against."""
MIN_OPENVINO = "2026.4"
"""The only release that int8 was measured with."""


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """A graph that was written."""

    file: FileEntry
    inputs: list[str]


class EngineWriter:
    """Writes engines of one checkpoint into a bundle that is being made."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        manifest: Manifest,
        staging: Staging,
        report: Progress,
    ) -> None:
        self._checkpoint, self._manifest, self._staging, self._report = checkpoint, manifest, staging, report
        self._groups = all_groups(checkpoint.config)
        self._tables: dict[Precision, WeightsFile] = {}
        self._calibration: Calibration | None = None
        self.files: list[FileEntry] = []
        """Written so far."""

    def floats(self, precision: Precision, dialects: tuple[Dialect, ...]) -> list[EngineEntry]:
        """One weights file of fp32 or fp16, and a graph for each dialect."""
        weights = write_weights(
            self._checkpoint,
            precision,
            self._staging.temporary(f"weights.{precision}"),
            progress=functools.partial(self._report, f"writing {precision} weights"),
        )
        self._keep_weights(weights)
        engines = []
        for dialect in dialects:
            name = f"{dialect}.{precision}"
            graph = self._keep_graph(f"model.{name}", dialect, precision, dict(weights.tensors))
            packed = dialect is Dialect.PACKED
            requires = {"onnxruntime": MIN_ONNXRUNTIME_PACKED if packed else MIN_ONNXRUNTIME}
            if dialect is Dialect.PORTABLE:
                requires |= {"openvino": MIN_OPENVINO} if precision is Precision.FP32 else {"tensorrt": MIN_TENSORRT}
            engines.append(self._entry(name, dialect, precision, graph, [weights], requires))
        return engines

    def quantized(
        self,
        wanted: Sequence[tuple[Precision, Recipe]],
        options: QuantizationOptions,
        dialects: tuple[Dialect, ...],
        *,
        floats: frozenset[str] = frozenset(),
    ) -> list[list[EngineEntry]]:
        """The engines of each precision and recipe: the tables, once; weights that all dialects share; a graph for
        each dialect that the recipe is for.

        `floats`: groups of products to leave in float, whatever the recipes say.
        """
        for _, recipe in wanted:
            recipe.check(self._groups)
            if Dialect.PORTABLE in dialects and Dialect.PORTABLE in recipe.modes:
                _check_group_size(recipe, self._checkpoint.config)
            if recipe.floats not in self._tables:
                self._write_tables(recipe.floats)
        if self._calibration is None:
            self._calibration = load_calibration(self._checkpoint, options.calibration)
        with ExitStack() as stack:
            writers = [
                stack.enter_context(WeightsWriter(self._staging.temporary(f"weights.{precision}.{recipe.name}")))
                for precision, recipe in wanted
            ]
            jobs = [
                QuantizationJob(
                    recipe=recipe,
                    activation=options.activation_of(precision, recipe),
                    store=writer.add,
                    plans={dialect: DialectPlan() for dialect in dialects if dialect in recipe.modes},
                    floats=floats,
                )
                for (precision, recipe), writer in zip(wanted, writers, strict=True)
            ]
            quantize_model(
                self._checkpoint,
                jobs,
                self._calibration,
                seed=options.seed,
                n_threads=detect_hardware().n_usable_cores,
                progress=functools.partial(self._report, f"quantizing ({', '.join(r.name for _, r in wanted)})"),
            )
            weights = [writer.finish() for writer in writers]
        for written in weights:
            self._keep_weights(written)
        return [
            [
                self._quantized_entry(precision, job, options, self._calibration, *item, linears)
                for item in job.plans.items()
            ]
            for (precision, _), job, linears in zip(wanted, jobs, weights, strict=True)
        ]

    def _write_tables(self, floats: Precision) -> None:
        write, what = (write_fp16_tables, "writing") if floats is Precision.FP16 else (write_int8_tables, "quantizing")
        path = self._staging.temporary(f"weights.tables.{floats}")
        tables = write(self._checkpoint, path, progress=functools.partial(self._report, f"{what} the embeddings"))
        self._tables[floats] = tables
        self._keep_weights(tables)

    def more_floats(
        self,
        engines: list[EngineEntry],
        floats: frozenset[str],
        *,
        least_cosine: float,
        min_cosine: float,
        max_float_share: float,
    ) -> frozenset[str]:
        """`floats` and the groups of the largest measured errors, as many as bring `least_cosine` to the bound.

        As if errors added up to the cosine's distance from 1; never over the allowed share, at least one if it allows.
        """
        errors = dict.fromkeys(self._groups, 0.0)
        for product in (
            product for engine in engines if engine.quantization for product in engine.quantization.products
        ):
            errors[product.name] = max(errors[product.name], product.error)
        bound = sum(errors.values()) * (1 - min_cosine) / (1 - least_cosine)
        chosen = set(floats)
        for group in sorted(set(self._groups) - floats, key=lambda group: -errors[group]):
            if chosen != floats and sum(errors[g] for g in self._groups if g not in chosen) <= bound:
                break
            if self.float_share(frozenset({*chosen, group})) <= max_float_share:
                chosen.add(group)
        return frozenset(chosen)

    def float_share(self, floats: frozenset[str]) -> float:
        """The share of all multiplications that `floats` are."""
        config = self._checkpoint.config
        total = sum(n_multiplications(config, group) for group in self._groups)
        return sum(n_multiplications(config, group) for group in floats) / total

    def _quantized_entry(
        self,
        precision: Precision,
        job: QuantizationJob,
        options: QuantizationOptions,
        calibration: Calibration,
        dialect: Dialect,
        plan: DialectPlan,
        linears: WeightsFile,
    ) -> EngineEntry:
        recipe, tables = job.recipe, self._tables[job.recipe.floats]
        tensors = {**tables.tensors, **linears.tensors}
        for group, how in plan.inputs.items():
            if how.mode is ProductMode.FLOAT:
                for linear in linears_of(group):
                    tensors[f"{linear}.weight"] = linears.tensors[f"{linear}.weight{FLOAT_SUFFIX}"]
        tensors |= {
            name: ir.tensor(vector.astype(recipe.float_dtype), name=name) for name, vector in plan.vectors.items()
        }
        name = f"{dialect}.{precision}.{recipe.name}.{job.activation}"
        products = int8_products(dialect, plan.inputs)
        graph = self._keep_graph(f"model.{name}", dialect, precision, tensors, products, recipe.floats)
        has_groups = any(how.mode is ProductMode.GROUP for how in plan.inputs.values())
        quantization = Quantization(
            recipe_sha256=recipe.sha256,
            seed=options.seed,
            calibration=calibration.name,
            calibration_sha256=calibration.sha256,
            n_texts=calibration.n_texts,
            n_tokens=calibration.n_tokens,
            weight_bits=recipe.weight_bits,
            group_size=group_size(recipe, self._checkpoint.config) if has_groups else None,
            products=[_product(group, plan) for group in self._groups],
        )
        if recipe.is_for_tensorrt:
            requires = {"tensorrt": MIN_TENSORRT, "onnxruntime": MIN_ONNXRUNTIME_AROUND_FP16}
        elif dialect is Dialect.FUSED:
            requires = {"onnxruntime": MIN_ONNXRUNTIME}
        else:
            requires = {"openvino": MIN_OPENVINO}
            if not has_groups:  # which onnxruntime would compute in float
                requires["onnxruntime"] = MIN_ONNXRUNTIME
        return self._entry(name, dialect, precision, graph, [tables, linears], requires, job, quantization)

    def _entry(
        self,
        name: str,
        dialect: Dialect,
        precision: Precision,
        graph: _Graph,
        weights: list[WeightsFile],
        requires: dict[str, str],
        job: QuantizationJob | None = None,
        quantization: Quantization | None = None,
    ) -> EngineEntry:
        manifest = self._manifest
        return EngineEntry(
            name=name,
            dialect=dialect,
            precision=precision,
            recipe=job.recipe.name if job else None,
            activation=job.activation if job else None,
            file=graph.file.name,
            weights=[weight.name for weight in weights],
            inputs=graph.inputs,
            output=OUTPUT,
            requires=requires,
            space=space_fingerprint(
                weights_sha256=manifest.model.weights_sha256,
                tokenizer_sha256=manifest.file(manifest.text.tokenizer).sha256,
                text=manifest.text,
                pooling=manifest.pooling_mode,
                normalize=manifest.is_normalized,
                precision=precision,
                # What int8 engines give depends on every scale: only the same graph gives the same vectors.
                recipe=graph.file.sha256 if quantization else None,
            ),
            quantization=quantization,
        )

    def _keep_weights(self, weights: WeightsFile) -> None:
        self.files.append(self._staging.keep(weights.written, weights.name, sha256=weights.sha256))

    def _keep_graph(
        self,
        stem: str,
        dialect: Dialect,
        precision: Precision,
        tensors: dict[str, ir.TensorProtocol],
        products: Products = FLOAT_PRODUCTS,
        floats: Precision | None = None,
    ) -> _Graph:
        model = write_encoder(
            self._checkpoint.config,
            tensors,
            dialect=dialect,
            precision=precision,
            pooling=self._checkpoint.settings.pooling_mode,
            products=products,
            floats=floats,
        )
        path = self._staging.temporary(stem)
        ir.save(model, path, format="protobuf")
        sha256 = sha256_of(path)
        entry = self._staging.keep(path, f"{stem}.{sha256[:16]}.onnx", sha256=sha256)
        self.files.append(entry)
        return _Graph(file=entry, inputs=[str(value.name) for value in model.graph.inputs])


def _product(group: str, plan: DialectPlan) -> QuantizedProduct:
    how, outcome = plan.inputs[group], plan.outcomes.get(group)
    return QuantizedProduct(
        name=group,
        mode=how.mode,
        migration=outcome.migration if outcome else None,
        scale=how.scale,
        zero_point=how.zero_point if how.mode in (ProductMode.STATIC, ProductMode.TOKEN) else None,
        error=outcome.errors.final if outcome else 0.0,
        error_plain=outcome.errors.plain if outcome else 0.0,
        error_migrated=outcome.errors.migrated if outcome else 0.0,
    )


def group_size(recipe: Recipe, config: ModelConfig) -> int:
    """Channels that share a scale in products of mode group; 0: there are none.

    The recipe's number, or the largest part of it that divides what each of them reads.
    """
    ffn = config.ffn_size
    widths = {
        ffn + n_copies(recipe, group, ffn) if group.endswith("ffn.down") else config.hidden_size
        for group in all_groups(config)
        if recipe.mode(Dialect.PORTABLE, group) is ProductMode.GROUP
    }
    return recipe.group_size_for(*widths) if widths else 0


def _check_group_size(recipe: Recipe, config: ModelConfig) -> None:
    """UsageError where OpenVINO would compute products of mode group in float: groups are multiples of GROUP_STEP."""
    if group_size(recipe, config) % GROUP_STEP:
        raise UsageError(
            f"recipe {recipe.name}: OpenVINO finds scales for groups of a multiple of {GROUP_STEP} channels, "
            f"which do not divide this model's {config.hidden_size} and {config.ffn_size}: give the products of the "
            "portable dialect the mode token or static by a recipe of your own, or export --dialect fused"
        )
