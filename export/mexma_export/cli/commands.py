"""The commands `mexma export`, `mexma standin` and `mexma parity`; `mexma` finds them through entry points."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated

import typer

from mexma_export.graph.input_quantization import Activation
from mexma_export.parity.breakdown import Side
from mexma_export.quantize.recipe import FOR_CPUS, FOR_TENSORRT
from mexma_export.targets.targets import ExportTarget, TargetOptions, is_bundle, make_target
from mexma_runtime.bundle.plans import HardwareCompatibility
from mexma_runtime.errors import MissingDependencyError, ParityError, UsageError
from mexma_runtime.terminal import note, progress_bars
from mexma_runtime.types import QUANTIZED, Dialect, Pooling, Precision

SOURCE_HELP = "An id on the hub, a local folder in the hub's layout, or standin:NAME (mexma, base, small, tiny, ...)."

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a table.")]
TokenizerOption = Annotated[
    str | None, typer.Option(help="Where tokenizer.json is, if not with the model: a file, a folder or a hub id.")
]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]


def register_export(app: typer.Typer) -> None:
    """Add `mexma export`."""

    @app.command("export")
    def export_command(
        source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
        out: Annotated[
            Path | None,
            typer.Option(
                help="Folder of the bundle: a new one, or one of the same checkpoint. Of the targets plan and triton: "
                "where they go."
            ),
        ] = None,
        target: Annotated[
            ExportTarget,
            typer.Option(
                help="onnx: graphs for CPUs and GPUs. tensorrt: plans for this machine's GPU, in the bundle. plan: a "
                "bare plan with its description. triton: a model repository. These take a bundle as SOURCE, tensorrt a "
                "checkpoint as well."
            ),
        ] = ExportTarget.ONNX,
        precision: Annotated[
            list[Precision] | None,
            typer.Option(help="May be given several times; default: fp32 and fp16; for TensorRT fp16."),
        ] = None,
        dialect: Annotated[
            list[Dialect] | None,
            typer.Option(help="May be given several times; default: all (of int8, portable and fused)."),
        ] = None,
        pooling: Annotated[Pooling | None, typer.Option(help="Instead of what the checkpoint's files say.")] = None,
        revision: RevisionOption = None,
        tokenizer: TokenizerOption = None,
        device: Annotated[
            str | None,
            typer.Option(
                help="What float engines are judged on: cpu (default), or a GPU: cuda, cuda:1. What plans are built "
                "on: cuda (default), cuda:1."
            ),
        ] = None,
        skip_parity: Annotated[
            bool, typer.Option("--skip-parity", help="Publish engines that were never judged.")
        ] = False,
        recipe: Annotated[
            list[str] | None,
            typer.Option(
                help="Of int8: fast, precise, tensorrt, or a JSON file; may be given several times; default: fast, and "
                "tensorrt for fp8 and TensorRT."
            ),
        ] = None,
        calibration: Annotated[
            Path | None,
            typer.Option(help="Of int8: text to take ranges from, as --corpus of parity; default: the package's own."),
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
        engine: Annotated[
            str | None, typer.Option(help="Of a bundle as SOURCE: the engine to take, by its name.")
        ] = None,
        profile: Annotated[
            list[str] | None,
            typer.Option(
                help="Of TensorRT plans: shapes to choose kernels for: latency:N, throughput:TOKENS or NxLENGTH; may "
                "be given several times; default: latency:8 and throughput:65536."
            ),
        ] = None,
        hardware_compatible: Annotated[
            HardwareCompatibility,
            typer.Option(help="Of TensorRT plans: the other GPUs that may run them; the more, the slower."),
        ] = HardwareCompatibility.NONE,
        name: Annotated[str, typer.Option(help="Of Triton's model.")] = "mexma",
        over_tensorrt: Annotated[
            bool, typer.Option("--over-tensorrt", help="Of Triton: serve a TensorRT plan of this GPU, not a graph.")
        ] = False,
        as_json: JsonOption = False,
    ) -> None:
        """Turn a checkpoint into a bundle, add engines to one, or make of a bundle what other servers run."""
        _require("onnx_ir", "safetensors", "ml_dtypes")
        from mexma_export.bundle.pipeline import EnginesRefusedError, ExportPlan, export
        from mexma_export.checkpoint.sources import resolve_source
        from mexma_export.quantize.options import QuantizationOptions
        from mexma_export.quantize.recipe import load_recipe

        wanted = TargetOptions(
            target=target,
            # Beside a checkpoint it may say that engines are judged on the CPU.
            device="cuda" if device is None or (device == "cpu" and not is_bundle(source)) else device,
            precisions=tuple(dict.fromkeys(precision or ())),
            engine=engine,
            profiles=tuple(profile or ()),
            compatibility=hardware_compatible,
            out=out,
            name=name,
            over_tensorrt=over_tensorrt,
        )
        wanted.check(is_from_bundle=is_bundle(source))
        of_quantized: dict[str, object] = {
            "--recipe": recipe or None,
            "--calibration": calibration,
            "--activation": activation,
            "--min-cosine": min_cosine,
            "--max-float-share": max_float_share,
            "--seed": seed,
        }
        if is_bundle(source):
            of_checkpoint: dict[str, object] = {
                **of_quantized,
                "--dialect": dialect or None,
                "--pooling": pooling,
                "--revision": revision,
                "--tokenizer": tokenizer,
                "--skip-parity": skip_parity or None,
                "--json": as_json or None,
            }
            if given := _given(of_checkpoint):
                raise UsageError(
                    f"{given}: for checkpoints, and SOURCE is a bundle, whose engines are taken as they are"
                )
            _make(Path(source), wanted)
            return
        assert out is not None
        default = [Precision.FP32, Precision.FP16] if target is ExportTarget.ONNX else [Precision.FP16]
        precisions = tuple(dict.fromkeys(precision or default))
        is_int8 = not QUANTIZED.isdisjoint(precisions)
        if not is_int8 and (given := _given(of_quantized)):
            raise UsageError(f"{given}: for int8 and fp8 only: add --precision int8")
        if max_float_share is not None and min_cosine is None and Precision.FP8 not in precisions:
            raise UsageError("--max-float-share bounds what --min-cosine leaves in float: give --min-cosine too")
        int8 = QuantizationOptions(
            recipes=tuple(map(load_recipe, dict.fromkeys(recipe or _default_recipes(precisions, target)))),
            calibration=calibration,
            activation=activation,
            seed=seed or 0,
            min_cosine=min_cosine,
            max_float_share=max_float_share,
        )
        plan = ExportPlan(
            out=out,
            precisions=precisions,
            quantization=int8 if is_int8 else None,
            dialects=tuple(dict.fromkeys(dialect or (Dialect if target is ExportTarget.ONNX else [Dialect.PORTABLE]))),
            pooling=pooling,
            check_parity=not skip_parity,
            device=device or "cpu",
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
                exported = export(found, plan, progress=report)
            except EnginesRefusedError as error:
                exported, refused = error.exported, error
        from mexma_export.cli.tables import show_export

        for line in exported.warnings:
            note(f"warning: {line}")
        show_export(out, exported, as_json=as_json)
        if refused:
            raise refused
        if target is ExportTarget.TENSORRT:
            _make(out, dataclasses.replace(wanted, precisions=precisions))


def register_standin(app: typer.Typer) -> None:
    """Add `mexma standin`."""

    @app.command("standin")
    def standin_command(
        name: Annotated[str, typer.Argument(help="mexma (full size), base, small, tiny, ...")],
        out: Annotated[Path, typer.Option(help="Folder to write; it must not exist or be empty.")],
        seed: Annotated[int, typer.Option(help="Another seed gives other weights.")] = 0,
        outliers: Annotated[bool, typer.Option("--outliers", help="Plant outlier channels, as RoBERTa has.")] = False,
    ) -> None:
        """Write a checkpoint of a real architecture with seeded random weights: for speed, size and tests."""
        from mexma_export.checkpoint.standin import write_standin

        with progress_bars() as report:
            folder = write_standin(
                name, out, seed=seed, outliers=outliers, progress=functools.partial(report, f"writing {name}")
            )
        note(f"wrote the stand-in {name} to {folder}: random weights, for speed, size and tests, never for quality")


def register_parity(app: typer.Typer) -> None:
    """Add `mexma parity`."""

    @app.command("parity")
    def parity_command(
        bundle: Annotated[Path, typer.Option(help="Folder of the bundle.")],
        reference: Annotated[str, typer.Option(help=f"The checkpoint that the bundle was made from. {SOURCE_HELP}")],
        precision: Annotated[list[Precision] | None, typer.Option(help="Only engines of these precisions.")] = None,
        device: Annotated[str, typer.Option(help="What to run engines on: cpu, or a GPU: cuda, cuda:1.")] = "cpu",
        backend: Annotated[
            str | None, typer.Option(help="Judge by this alone: onnxruntime, openvino, tensorrt.")
        ] = None,
        certify: Annotated[
            bool, typer.Option("--certify", help="Keep the verdicts in the bundle, as its engines' certificates.")
        ] = False,
        corpus: Annotated[
            Path | None,
            typer.Option(
                help="Sentences: a text file, one a line; a .tsv, language TAB text; or a folder of LANGUAGE.txt or "
                "NAME.SOURCE-TARGET.LANGUAGE files. Default: the package's own."
            ),
        ] = None,
        by: Annotated[
            list[Side] | None, typer.Option(help="Show figures by this too; the JSON always has both.")
        ] = None,
        mining: Annotated[
            Path | None,
            typer.Option(
                help="Folder of parallel files, NAME.SOURCE-TARGET.SOURCE and .TARGET or LANGUAGE.txt: count the "
                "source sentences that find a wrong translation (xsim)."
            ),
        ] = None,
        mining_pivot: Annotated[
            str | None, typer.Option(help="Of LANGUAGE.txt files, the target of all others; default: eng.")
        ] = None,
        mining_lines: Annotated[int | None, typer.Option(help="Only the first lines of each parallel file.")] = None,
        sts: Annotated[
            Path | None,
            typer.Option(help="Lines of score TAB sentence TAB sentence: correlate cosines with the scores."),
        ] = None,
        report: Annotated[Path | None, typer.Option(help="Write all figures as JSON.")] = None,
        revision: RevisionOption = None,
        tokenizer: TokenizerOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Compare every engine of a bundle with PyTorch; exit code 7 where one misses its thresholds."""
        _require("safetensors", "ml_dtypes")
        from mexma_export.bundle.comparison import certify as write_certificates
        from mexma_export.bundle.comparison import compare_bundle
        from mexma_export.checkpoint.sources import resolve_source
        from mexma_export.cli.parity_tables import show_parity
        from mexma_export.corpus.corpus import read_corpus
        from mexma_export.parity.mining import read_mining
        from mexma_export.parity.report_json import parity_json
        from mexma_export.parity.sts import read_sts

        if mining is None and (mining_pivot, mining_lines) != (None, None):
            raise UsageError("--mining-pivot and --mining-lines belong to --mining FOLDER, which was not given")
        sentences = read_corpus(corpus) if corpus else None
        bitexts = read_mining(mining, pivot=mining_pivot, n_lines=mining_lines) if mining else None
        pairs = read_sts(sts) if sts else None
        if report and not report.parent.is_dir():
            raise UsageError(f"--report {report}: there is no folder {report.parent}")
        with progress_bars() as bars:
            found = resolve_source(
                reference,
                revision=revision,
                tokenizer=tokenizer,
                progress=functools.partial(bars, f"making {reference}"),
            )
            verdicts, used = compare_bundle(
                bundle,
                found,
                corpus=sentences,
                mining=bitexts,
                sts=pairs,
                precisions=precision,
                device=device,
                backend=backend,
                progress=bars,
            )
        if report:
            report.write_text(json.dumps(parity_json(verdicts, used), indent=2) + "\n", encoding="utf-8")
        show_parity(verdicts, used, by=by or (), as_json=as_json)
        if certify:
            note(f"certificates kept: {', '.join(write_certificates(bundle, verdicts)) or 'none'}")
        if short := [f"{v.engine.name}: {s}" for v in verdicts for s in v.shortfalls]:
            raise ParityError("\n".join(short))


def _make(folder: Path, wanted: TargetOptions) -> None:
    with progress_bars() as report:
        made = make_target(folder, wanted, progress=report)
    for line in made:
        note(line)


def _given(options: Mapping[str, object]) -> str:
    """The names of those that have a value."""
    return ", ".join(name for name, value in options.items() if value is not None)


def _default_recipes(precisions: Collection[Precision], target: ExportTarget) -> list[str]:
    """For CPUs where int8 is for them, for TensorRT where int8 or fp8 is."""
    for_cpus = [FOR_CPUS[0]] if target is ExportTarget.ONNX and Precision.INT8 in precisions else []
    is_for_tensorrt = target is not ExportTarget.ONNX or Precision.FP8 in precisions
    return for_cpus + ([FOR_TENSORRT] if is_for_tensorrt else []) or [FOR_CPUS[0]]


def _require(*packages: str) -> None:
    import importlib.util

    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, needed_for="this command", extra="export")
