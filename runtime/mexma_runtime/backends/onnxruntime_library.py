"""What the backends over onnxruntime share: its import, and its silence."""

from __future__ import annotations

from typing import Any

from mexma_runtime.errors import EngineUnavailableError, MissingDependencyError

NAME = "onnxruntime"
SILENT = 4
"""Log severity `fatal`: what goes wrong is raised, nothing is printed."""


def import_onnxruntime(*, package: str, needed_for: str, extra: str) -> Any:
    """onnxruntime; MissingDependencyError where `package` would bring it."""
    try:
        import onnxruntime
    except ImportError as error:
        if error.name == NAME and isinstance(error, ModuleNotFoundError):
            raise MissingDependencyError(package, needed_for=needed_for, extra=extra) from error
        raise EngineUnavailableError(f"{NAME} is installed but cannot be imported: {error}") from error
    return onnxruntime
