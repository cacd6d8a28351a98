"""Options that several commands take, and what each asks for before it imports anything large."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

from mexma_runtime.errors import MissingDependencyError

SOURCE_HELP = "An id on the hub, a local folder in the hub's layout, or standin:NAME (mexma, base, small, tiny, ...)."

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a table.")]
TokenizerOption = Annotated[
    str | None, typer.Option(help="Where tokenizer.json is, if not with the model: a file, a folder or a hub id.")
]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]


def require_packages(*packages: str) -> None:
    """MissingDependencyError for the first that is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, needed_for="this command", extra="export")
