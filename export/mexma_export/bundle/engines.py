"""Writing the engines of a job: weights and graphs under their final names, and their entries for the manifest."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from mexma_export.bundle.jobs import EngineJob, FloatJob, QuantizedJob
from mexma_export.bundle.staging import Staging
from mexma_export.checkpoint.checkpoint import Checkpoint
from mexma_export.graph.encoder import OUTPUT, write_encoder
from mexma_export.graph.linear import FLOAT_PRODUCTS, Products, int8_products
from mexma_export.graph.linear_groups import linears_of
from mexma_export.graph.weights import WeightsFile, WeightsWriter, write_fp16_tables, write_int8_tables, write_weights
from mexma_export.quantize.calibration import Calibration, load_calibration
from mexma_export.quantize.fit import group_size
from mexma_export.quantize.model import FLOAT_SUFFIX, GraphParts, RecipeRun, quantize_model
from mexma_runtime.backends import required_versions
from mexma_runtime.bundle.bundle import content_name, sha256_of
from mexma_runtime.bundle.manifest import (
    EngineEntry,
    FileEntry,
    Manifest,
    ProductMode,
    Quantization,
    QuantizedProduct,
)
from mexma_runtime.hardware import default_threads, detect_hardware
from mexma_runtime.terminal import Progress
from mexma_runtime.types import Dialect, Precision


@dataclass(frozen=True, kw_only=True)
class Written:
    """The engines of one job, under their final names beside the bundle, and no part of it yet."""

    job: EngineJob
    engines: tuple[EngineEntry, ...]
    """Without certificates."""
    files: tuple[FileEntry, ...]
    """All that the engines need."""


class EngineWriter:
    """Writes engines of one checkpoint into a bundle that is being made."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        manifest: Manifest,
        staging: Staging,
        report: Progress,
        *,
        calibration: Path | None = None,
    ) -> None:
        """`manifest`: of the bundle; `calibration`: the text to quantize by, None: the package's own."""
        self._checkpoint, self._manifest, self._staging, self._report = checkpoint, manifest, staging, report
        self._calibration_path = calibration
        self._tables: dict[Precision, tuple[WeightsFile, FileEntry]] = {}

    def write(self, jobs: Sequence[EngineJob]) -> Iterator[Written]:
        """The jobs in their order, each when it is asked for; but all quantized ones by one run of the model."""
        for job in jobs:
            if isinstance(job, FloatJob):
                yield self._write_floats(job)
        if quantized := [job for job in jobs if isinstance(job, QuantizedJob)]:
            yield from self._write_quantized(quantized)

    def _write_floats(self, job: FloatJob) -> Written:
        weights = write_weights(
            self._checkpoint,
            job.precision,
            self._staging.temporary(f"weights.{job.precision}"),
            progress=functools.partial(self._report, f"writing {job.precision} weights"),
        )
        graphs = {dialect: self._graph(job, dialect, weights.tensors) for dialect in job.dialects}
        engines = [
            self._entry(job, dialect, graph, [weights], required_versions(dialect, job.precision))
            for dialect, graph in graphs.items()
        ]
        files = [self._keep_weights(weights), *(graph.file for graph in graphs.values())]
        return Written(job=job, engines=tuple(engines), files=tuple(files))

    def _write_quantized(self, jobs: Sequence[QuantizedJob]) -> list[Written]:
        """The embedding tables, once; weights that all dialects of a job share; a graph for each dialect."""
        for job in jobs:
            if job.recipe.floats not in self._tables:
                self._write_tables(job.recipe.floats)
        with ExitStack() as stack:
            writers = [
                stack.enter_context(
                    WeightsWriter(self._staging.temporary(f"weights.{job.precision}.{job.recipe.name}"))
                )
                for job in jobs
            ]
            runs = [
                RecipeRun(
                    recipe=job.recipe,
                    activation=job.activation,
                    store=writer.add,
                    graphs={dialect: GraphParts() for dialect in job.dialects},
                    floats=job.floats,
                )
                for job, writer in zip(jobs, writers, strict=True)
            ]
            quantize_model(
                self._checkpoint,
                runs,
                self._calibration,
                seed=jobs[0].seed,
                n_threads=default_threads(detect_hardware()),
                progress=functools.partial(self._report, f"quantizing ({', '.join(job.recipe.name for job in jobs)})"),
            )
            weights = [writer.finish() for writer in writers]
        return [
            self._write_graphs(job, run.graphs, linears) for job, run, linears in zip(jobs, runs, weights, strict=True)
        ]

    @functools.cached_property
    def _calibration(self) -> Calibration:
        return load_calibration(self._checkpoint, self._calibration_path)

    def _write_tables(self, floats: Precision) -> None:
        write, what = (write_fp16_tables, "writing") if floats is Precision.FP16 else (write_int8_tables, "quantizing")
        path = self._staging.temporary(f"weights.tables.{floats}")
        tables = write(self._checkpoint, path, progress=functools.partial(self._report, f"{what} the embeddings"))
        self._tables[floats] = tables, self._keep_weights(tables)

    def _write_graphs(self, job: QuantizedJob, graphs: Mapping[Dialect, GraphParts], linears: WeightsFile) -> Written:
        tables, table_file = self._tables[job.recipe.floats]
        engines, files = [], [table_file, self._keep_weights(linears)]
        for dialect, parts in graphs.items():
            tensors = {**tables.tensors, **linears.tensors}
            for group, how in parts.inputs.items():
                if how.mode is ProductMode.FLOAT:
                    for linear in linears_of(group):
                        tensors[f"{linear}.weight"] = linears.tensors[f"{linear}.weight{FLOAT_SUFFIX}"]
            tensors |= {
                name: ir.tensor(vector.astype(job.recipe.float_dtype), name=name)
                for name, vector in parts.vectors.items()
            }
            graph = self._graph(job, dialect, tensors, int8_products(dialect, parts.inputs))
            files.append(graph.file)
            quantization = self._quantization(job, parts)
            requires = required_versions(
                dialect, job.precision, around=job.recipe.floats, has_scale_groups=quantization.has_scale_groups
            )
            engines.append(self._entry(job, dialect, graph, [tables, linears], requires, quantization))
        return Written(job=job, engines=tuple(engines), files=tuple(files))

    def _quantization(self, job: QuantizedJob, parts: GraphParts) -> Quantization:
        recipe, calibration = job.recipe, self._calibration
        has_scale_groups = any(how.mode is ProductMode.GROUP for how in parts.inputs.values())
        return Quantization(
            recipe_sha256=recipe.sha256,
            seed=job.seed,
            calibration=calibration.name,
            calibration_sha256=calibration.sha256,
            n_texts=calibration.n_texts,
            n_tokens=calibration.n_tokens,
            weight_bits=recipe.weight_bits,
            group_size=group_size(recipe, job.multiplications, self._checkpoint.config) if has_scale_groups else None,
            products=[_product(group, parts) for group in job.multiplications],
        )

    def _entry(
        self,
        job: EngineJob,
        dialect: Dialect,
        graph: _Graph,
        weights: list[WeightsFile],
        requires: dict[str, str],
        quantization: Quantization | None = None,
    ) -> EngineEntry:
        quantized = job if isinstance(job, QuantizedJob) else None
        return EngineEntry(
            name=_name(job, dialect),
            dialect=dialect,
            precision=job.precision,
            recipe=quantized.recipe.name if quantized else None,
            activation=quantized.activation if quantized else None,
            file=graph.file.name,
            weights=[weight.name for weight in weights],
            inputs=graph.inputs,
            output=OUTPUT,
            requires=requires,
            space=self._manifest.space(job.precision, graph.file),
            quantization=quantization,
        )

    def _keep_weights(self, weights: WeightsFile) -> FileEntry:
        return self._staging.keep(weights.written, weights.name, sha256=weights.sha256)

    def _graph(
        self,
        job: EngineJob,
        dialect: Dialect,
        tensors: Mapping[str, ir.TensorProtocol],
        products: Products = FLOAT_PRODUCTS,
    ) -> _Graph:
        model = write_encoder(
            self._checkpoint.config,
            tensors,
            dialect=dialect,
            precision=job.precision,
            pooling=self._checkpoint.settings.pooling_mode,
            products=products,
            floats=job.recipe.floats if isinstance(job, QuantizedJob) else None,
        )
        stem = f"model.{_name(job, dialect)}"
        path = self._staging.temporary(stem)
        ir.save(model, path, format="protobuf")
        sha256 = sha256_of(path)
        entry = self._staging.keep(path, content_name(stem, sha256, "onnx"), sha256=sha256)
        return _Graph(file=entry, inputs=[str(value.name) for value in model.graph.inputs])


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """A graph that was written."""

    file: FileEntry
    inputs: list[str]


def _name(job: EngineJob, dialect: Dialect) -> str:
    of_recipe = f".{job.recipe.name}.{job.activation}" if isinstance(job, QuantizedJob) else ""
    return f"{dialect}.{job.precision}{of_recipe}"


def _product(group: str, parts: GraphParts) -> QuantizedProduct:
    how, found = parts.inputs[group], parts.results.get(group)
    return QuantizedProduct(
        name=group,
        mode=how.mode,
        migration=found.alpha if found else None,
        scale=how.scale,
        zero_point=how.zero_point if how.mode in (ProductMode.STATIC, ProductMode.TOKEN) else None,
        error=found.errors.final if found else 0.0,
        error_plain=found.errors.plain if found else 0.0,
        error_migrated=found.errors.smoothed if found else 0.0,
    )
