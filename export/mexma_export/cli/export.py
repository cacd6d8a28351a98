"""The command `mexma export`."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated

import typer

from mexma_export.cli.options import SOURCE_HELP, JsonOption, RevisionOption, TokenizerOption, require_packages
from mexma_export.graph.input_quantization import Activation
from mexma_export.quantize.recipe import FOR_CPUS, FOR_TENSORRT
from mexma_runtime.bundle.manifest import MANIFEST_NAME
from mexma_runtime.errors import UsageError
from mexma_runtime.terminal import note, progress_bars
from mexma_runtime.types import QUANTIZED, Dialect, Pooling, Precision


def register_export(app: typer.Typer) -> None:
    """Add `mexma export`."""

    @app.command("export")
    def export_command(
        source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
        out: Annotated[
            Path | None,
            typer.Option(help="Required: the bundle's folder, a new one or of the same checkpoint.", readable=False),
        ] = None,
        precision: Annotated[
            list[Precision] | None,
            typer.Option(help="May be given several times; default: fp32 and fp16."),
        ] = None,
        dialect: Annotated[
            list[Dialect] | None,
            typer.Option(help="May be given several times; default: all (of int8, portable and fused)."),
        ] = None,
        pooling: Annotated[Pooling | None, typer.Option(help="Instead of what the checkpoint's files say.")] = None,
        revision: RevisionOption = None,
        tokenizer: TokenizerOption = None,
        device: Annotated[
            str, typer.Option(help="What float engines are judged on: cpu, or a GPU: cuda, cuda:1.")
        ] = "cpu",
        skip_parity: Annotated[
            bool, typer.Option("--skip-parity", help="Publish engines that were never judged.")
        ] = False,
        recipe: Annotated[
            list[str] | None,
            typer.Option(
                help="Of int8 and fp8: fast, precise, tensorrt, or a JSON file; may be given several times; default: "
                "fast, and tensorrt for fp8."
            ),
        ] = None,
        calibration: Annotated[
            Path | None,
            typer.Option(
                help="Of int8: text to take ranges from, as --corpus of parity; default: the package's own.",
                readable=False,
            ),
        ] = None,
        activation: Annotated[
            Activation | None,
            typer.Option(help="Of int8: uint8 for x86, int8 (symmetric); default: as the recipe needs."),
        ] = None,
        min_cosine: Annotated[
            float | None,
            typer.Option(
                help="Of int8 and fp8: leave the worst products in float until the mean cosine is this; default: of "
                "fp8 0.999."
            ),
        ] = None,
        max_float_share: Annotated[
            float | None,
            typer.Option(
                help="Most multiplications that --min-cosine may leave in float, as a share; default: 0.1, of fp8 0.7."
            ),
        ] = None,
        seed: Annotated[
            int | None, typer.Option(help="Of int8: which tokens of the calibration text are sampled; default: 0.")
        ] = None,
        moved: Annotated[
            list[str] | None,
            typer.Option("--target", "--engine", "--profile", "--hardware-compatible", "--name", hidden=True),
        ] = None,
        over_tensorrt: Annotated[bool, typer.Option("--over-tensorrt", hidden=True)] = False,
        as_json: JsonOption = False,
    ) -> None:
        """Turn a checkpoint into a bundle, or add engines to the bundle of the same checkpoint."""
        require_packages("onnx_ir", "safetensors", "ml_dtypes")
        from mexma_export.bundle.pipeline import EnginesRefusedError, export
        from mexma_export.bundle.request import ExportRequest
        from mexma_export.checkpoint.sources import resolve_source
        from mexma_export.quantize.options import QuantizationOptions
        from mexma_export.quantize.recipe import load_recipe

        if moved or over_tensorrt or is_bundle(source):
            raise UsageError(_where_it_is_built(source))
        if out is None:
            raise UsageError("--out FOLDER is needed: where to write")
        of_quantized: dict[str, object] = {
            "--recipe": recipe or None,
            "--calibration": calibration,
            "--activation": activation,
            "--min-cosine": min_cosine,
            "--max-float-share": max_float_share,
            "--seed": seed,
        }
        precisions = tuple(dict.fromkeys(precision or (Precision.FP32, Precision.FP16)))
        is_quantized = not QUANTIZED.isdisjoint(precisions)
        if not is_quantized and (given := _given(of_quantized)):
            raise UsageError(f"{given}: for int8 and fp8 only: add --precision int8")
        if max_float_share is not None and min_cosine is None and Precision.FP8 not in precisions:
            raise UsageError("--max-float-share bounds what --min-cosine leaves in float: give --min-cosine too")
        quantization = QuantizationOptions(
            recipes=tuple(map(load_recipe, dict.fromkeys(recipe or _default_recipes(precisions)))),
            calibration=calibration,
            activation=activation,
            seed=seed or 0,
            min_cosine=min_cosine,
            max_float_share=max_float_share,
        )
        request = ExportRequest(
            out=out,
            precisions=precisions,
            quantization=quantization if is_quantized else None,
            dialects=tuple(dict.fromkeys(dialect or Dialect)),
            pooling=pooling,
            check_parity=not skip_parity,
            device=device,
        )
        with progress_bars() as report:
            found = resolve_source(
                source, revision=revision, tokenizer=tokenizer, progress=functools.partial(report, f"making {source}")
            )
        for line in found.notes:
            note(line)
        refused = None
        with progress_bars() as report:
            try:
                exported = export(found, request, progress=report)
            except EnginesRefusedError as error:
                exported, refused = error.exported, error
        from mexma_export.cli.tables import show_export

        for line in exported.warnings:
            note(f"warning: {line}")
        show_export(out, exported, as_json=as_json)
        if refused:
            raise refused


def is_bundle(source: str) -> bool:
    """Whether `source` is a bundle's folder, and no checkpoint."""
    return (Path(source) / MANIFEST_NAME).is_file()


def _where_it_is_built(source: str) -> str:
    """What to do instead, for those who ask an export for what `mexma build` makes."""
    if is_bundle(source):
        return (
            f"{source} is a bundle. To add engines, name its checkpoint. To make of it what other runtimes take: "
            f"mexma build {shlex.quote(source)} --target tensorrt, plan or triton"
        )
    return (
        f"mexma export makes a bundle: mexma export {shlex.quote(source)} --out BUNDLE. TensorRT plans and Triton "
        "repositories are made of a bundle: mexma build BUNDLE --target tensorrt, plan or triton"
    )


def _given(options: Mapping[str, object]) -> str:
    """The names of those that have a value."""
    return ", ".join(name for name, value in options.items() if value is not None)


def _default_recipes(precisions: Collection[Precision]) -> list[str]:
    """For CPUs where int8 is asked for, for TensorRT where fp8 is."""
    for_cpus = [FOR_CPUS[0]] if Precision.INT8 in precisions else []
    return for_cpus + ([FOR_TENSORRT] if Precision.FP8 in precisions else []) or [FOR_CPUS[0]]
