"""The JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mexma_runtime.errors import CheckpointError

LFS = b"version https://git-lfs.github.com/spec/"


def read_json(path: Path) -> Any:
    """The JSON of a file; None where there is no file; CheckpointError where it cannot be read as JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointError(path, [f"cannot be read: {error.strerror}"]) from None
    except (ValueError, RecursionError) as error:
        reason = "a pointer of Git LFS: download the file itself" if is_lfs_pointer(path) else error
        raise CheckpointError(path, [f"not JSON: {reason}"]) from None


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
