"""`python -m mexma_benchmarks.gpu_check`: see `make gpu-check`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mexma_benchmarks.gpu_check.engines import export_engines, read_kernels
from mexma_benchmarks.gpu_check.gpu_tests import run_gpu_tests
from mexma_benchmarks.gpu_check.invariance import check_invariance
from mexma_benchmarks.gpu_check.lineup import FULL, QUICK, lineup_on
from mexma_benchmarks.gpu_check.soak import measure_soak
from mexma_benchmarks.gpu_check.speed import check_minilm, measure_first, measure_late, measure_products
from mexma_benchmarks.gpu_check.steps import RESULT_FILE, Setup, Step, run_steps
from mexma_benchmarks.gpu_check.tensorrt import check_tensorrt_parity, measure_tensorrt
from mexma_benchmarks.report.checks import checks_table
from mexma_benchmarks.result.checks import exit_code
from mexma_benchmarks.result.environment import detect_environment
from mexma_benchmarks.result.result import Result
from mexma_export.checkpoint.sources import resolve_source
from mexma_runtime.backends import backend_statuses, require_device
from mexma_runtime.bundle.whole_files import require_writable
from mexma_runtime.errors import MexmaError, file_errors
from mexma_runtime.hardware import detect_hardware
from mexma_runtime.terminal import note, progress_bars

OUT = Path("engines/gpu-check")
WIDTH = 160
"""Columns of the table where there is no terminal."""
STEPS = (
    Step(name="GPU tests", measure=run_gpu_tests, needs_cuda=True),
    Step(name="export", measure=export_engines),
    Step(name="attention kernels", measure=read_kernels, needs_cuda=True),
    Step(name="batch-mates", measure=check_invariance),
    Step(name="vectors, latency and rates", measure=measure_first),
    Step(name="the card's own rate", measure=measure_products, needs_cuda=True),
    Step(name="MiniLM", measure=check_minilm),
    Step(name="memory over thousands of batches", measure=measure_soak, needs_cuda=True),
    # torch.compile of transformers' layers takes long.
    Step(name="compiled PyTorch, and peers", measure=measure_late, needs_cuda=True),
    Step(name="TensorRT: parity", measure=check_tensorrt_parity, needs_cuda=True),
    Step(name="TensorRT: latency and rate", measure=measure_tensorrt, needs_cuda=True),
)
BUDGET_S, BUDGET_WITH_TENSORRT_S = 460, 2700
"""Building plans takes most of the latter."""


def main(
    device: Annotated[str, typer.Option(help="`cuda`, `cuda:N` or `cpu`.")] = "cuda",
    model: Annotated[str, typer.Option(help="Checkpoint: `standin:NAME` or a folder.")] = "standin:mexma",
    out: Annotated[Path, typer.Option(help="Folder for the result, and for bundles of some GB.")] = OUT,
    quick: Annotated[bool, typer.Option("--quick", help="Only show that everything runs.")] = False,
    budget_s: Annotated[float, typer.Option(help="Seconds after which no step is begun.")] = BUDGET_WITH_TENSORRT_S
    if find_spec("tensorrt")
    else BUDGET_S,
) -> None:
    """Tests, parity, memory and speed on a GPU, each held against a bar; exit code 1 where something falls short."""
    if device.startswith("cuda") and (problem := cuda_problem()):
        note(f"error: onnxruntime does not work on CUDA here: {problem}")
        raise typer.Exit(1)
    try:
        require_device(device)
        resolve_source(model)
        with file_errors(out, "cannot be made a folder"):
            out.mkdir(parents=True, exist_ok=True)
        require_writable(out / RESULT_FILE)
    except MexmaError as error:
        note(f"error: {error}")
        raise typer.Exit(error.exit_code) from None
    result = Result(
        environment=detect_environment(("python", "-m", "mexma_benchmarks.gpu_check")),
        n_threads=detect_hardware().n_usable_cores,
        settings={"device": device, "model": Path(model).name, "is_quick": quick},
    )
    with progress_bars() as report:
        setup = Setup(
            device=device,
            source_name=model,
            out=out,
            sizes=QUICK if quick else FULL,
            lineup=lineup_on(device),
            result=result,
            report=report,
            budget_s=budget_s,
        )
        try:
            run_steps(STEPS, setup)
        finally:
            report_all(result, title=f"{model} on {', '.join(result.environment.gpus) or device}")
            note(f"Every sample is in {out / RESULT_FILE}; mexma bench report makes tables of them")
    raise typer.Exit(exit_code(result.checks))


def report_all(result: Result, *, title: str) -> None:
    """Print what was found, and whether that is all."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(checks_table(result.checks, title=title))
    if not result.is_complete:
        note("This run was ended before its last step")


def cuda_problem() -> str | None:
    """Why onnxruntime does not work on CUDA here; None where it does."""
    return next(s.problem for s in backend_statuses() if (s.name, s.device) == ("onnxruntime", "cuda"))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
