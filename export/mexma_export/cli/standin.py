"""The command `mexma standin`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from mexma_runtime.terminal import note, progress_bars


def register_standin(app: typer.Typer) -> None:
    """Add `mexma standin`."""

    @app.command("standin")
    def standin_command(
        name: Annotated[str, typer.Argument(help="mexma (full size), base, small, tiny, ...")],
        out: Annotated[Path, typer.Option(help="Folder to write; it must not exist or be empty.", readable=False)],
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
