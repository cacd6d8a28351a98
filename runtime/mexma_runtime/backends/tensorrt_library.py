"""TensorRT's Python package: its import, and what it says while it works. Building and running share it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mexma_runtime.errors import EngineUnavailableError, MissingDependencyError

if TYPE_CHECKING:
    import tensorrt as trt

NAME = "tensorrt"
MAX_KEPT = 20
"""Messages that an error is told with."""
Say = Callable[[str, str], None]
"""Called with a message's severity and its text."""


def import_tensorrt() -> Any:
    """tensorrt; MissingDependencyError where it is not installed."""
    try:
        import tensorrt
    except ImportError as error:
        if error.name == NAME and isinstance(error, ModuleNotFoundError):
            raise MissingDependencyError(
                "tensorrt-cu13", needed_for="running a TensorRT engine", extra="tensorrt"
            ) from error
        raise EngineUnavailableError(f"{NAME} is installed but cannot be imported: {error}") from error
    return tensorrt


class Messages:
    """What TensorRT says, kept to explain what it only answers with False or None."""

    def __init__(self, say: Say | None = None) -> None:
        """`say` gets every message, as it comes."""
        self._say, self._kept = say, list[str]()

    def add(self, severity: str, text: str) -> None:
        """Take one message in."""
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self._kept = [*self._kept, text][-MAX_KEPT:]
        if self._say:
            self._say(severity, text)

    def errors(self) -> str:
        """The errors since this was last asked for."""
        told, self._kept = "; ".join(self._kept), []
        return told or "TensorRT gives no reason"


def make_logger(messages: Messages) -> trt.ILogger:
    """A logger that hands all it is told to `messages`; TensorRT calls it from threads of its own."""
    import tensorrt as trt

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            messages.add(severity.name, msg)

    return Logger()
