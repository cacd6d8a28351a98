"""The command `mexma build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mexma_export.cli.options import require_packages
from mexma_export.targets.targets import BuildTarget, TargetOptions, make_target
from mexma_runtime.bundle.plans import HardwareCompatibility
from mexma_runtime.terminal import note, progress_bars
from mexma_runtime.types import Precision


def register_build(app: typer.Typer) -> None:
    """Add `mexma build`."""

    @app.command("build")
    def build_command(
        bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.", readable=False)],
        target: Annotated[
            BuildTarget,
            typer.Option(
                help="tensorrt: plans for this machine's GPU, in the bundle. tensorrt-rtx: for RTX GPUs, built on "
                "any x86-64 machine. plan: a bare plan with its description. "
                "triton: a model repository. sentence-transformers: the files that older bundles lack."
            ),
        ],
        out: Annotated[
            Path | None, typer.Option(help="Of plan and triton: the folder to write.", readable=False)
        ] = None,
        precision: Annotated[
            list[Precision] | None,
            typer.Option(help="Engines to take; may be given several times; default: all that the target takes."),
        ] = None,
        device: Annotated[
            str | None, typer.Option(help="Of tensorrt and plan: the GPU that it is for: cuda, cuda:1; default: cuda.")
        ] = None,
        capability: Annotated[
            list[str] | None,
            typer.Option(
                help="Of tensorrt-rtx: compute capabilities that a plan is for, of 7.5, 8.0, 8.6, 8.9, 12.0 and 12.1; "
                "may be given several times; default: 8.6, 8.9 and 12.0."
            ),
        ] = None,
        engine: Annotated[
            str | None, typer.Option(help="The engine to take, by its name; default: all that the target takes.")
        ] = None,
        profile: Annotated[
            list[str] | None,
            typer.Option(
                help="Of plans: shapes to choose kernels for: latency:N, throughput:TOKENS or NxLENGTH; may "
                "be given several times; default: latency:8 and throughput:65536."
            ),
        ] = None,
        hardware_compatible: Annotated[
            HardwareCompatibility,
            typer.Option(help="Of tensorrt and plan: the other GPUs that may run it; the more, the slower."),
        ] = HardwareCompatibility.NONE,
        name: Annotated[str | None, typer.Option(help="Of Triton: the model's name; default: mexma.")] = None,
        over_tensorrt: Annotated[
            bool, typer.Option("--over-tensorrt", help="Of Triton: serve a TensorRT plan of this GPU, not a graph.")
        ] = False,
    ) -> None:
        """Build TensorRT plans, a Triton repository, or the files for sentence-transformers from a bundle."""
        if target is not BuildTarget.SENTENCE_TRANSFORMERS:
            require_packages("onnx_ir", "ml_dtypes")
        wanted = TargetOptions(
            target=target,
            device=device,
            capabilities=tuple(dict.fromkeys(capability or ())),
            precisions=tuple(dict.fromkeys(precision or ())),
            engine=engine,
            profiles=tuple(profile or ()),
            compatibility=hardware_compatible,
            out=out,
            name=name,
            over_tensorrt=over_tensorrt,
        )
        wanted.check()
        with progress_bars() as report:
            made = make_target(bundle, wanted, progress=report)
        for line in made:
            note(line)
