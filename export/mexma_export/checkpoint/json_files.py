"""The JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mexma_runtime.errors import CheckpointError, file_errors

LFS = b"version https://git-lfs.github.com/spec/"


def read_json(path: Path) -> Any:
    """The JSON of a file; None where there is no file; CheckpointError where it is null or not JSON, FileError."""
    try:
        with file_errors(path, "cannot be read"):
            content = path.read_bytes() if path.exists() else None
        value = None if content is None else json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "a pointer of Git LFS: download the file itself" if is_lfs_pointer(path) else error
        raise CheckpointError(path, [f"not JSON: {reason}"]) from None
    if value is None and content is not None:
        raise CheckpointError(path, ["expected a JSON object or list, got null"])
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; {} where there is no file; CheckpointError where it is something else."""
    value = read_json(path)
    if value is not None and not isinstance(value, dict):
        raise CheckpointError(path, [f"expected a JSON object, got {type(value).__name__}"])
    return value or {}


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is what `git clone` leaves in place of a large one where Git LFS is not installed."""
    try:
        with path.open("rb") as file:
            return file.read(len(LFS)) == LFS
    except OSError:
        return False
