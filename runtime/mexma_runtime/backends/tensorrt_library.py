"""TensorRT's Python package, or that of TensorRT for RTX: its import, and what it says while it works.

Building and running share it. Both packages have the same classes, as far as the same code calls them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mexma_runtime.bundle.plans import Platform, RtxPlatform
from mexma_runtime.errors import EngineUnavailableError, MissingDependencyError

MAX_KEPT = 20
"""Messages that an error is told with."""
Say = Callable[[str, str], None]
"""Called with a message's severity and its text."""


@dataclass(frozen=True, kw_only=True)
class Library:
    """One of the two."""

    name: str
    """Of the backend, and of the extra that installs it."""
    title: str
    module: str
    package: str

    def load(self) -> Any:
        """The module; MissingDependencyError where it is not installed."""
        try:
            return importlib.import_module(self.module)
        except ImportError as error:
            if error.name == self.module and isinstance(error, ModuleNotFoundError):
                raise MissingDependencyError(
                    self.package, needed_for=f"a plan of {self.title}", extra=self.name
                ) from error
            raise EngineUnavailableError(f"{self.module} is installed but cannot be imported: {error}") from error


TENSORRT = Library(name=Platform.library, title=Platform.title, module="tensorrt", package="tensorrt-cu13")
TENSORRT_RTX = Library(
    name=RtxPlatform.library, title=RtxPlatform.title, module="tensorrt_rtx", package="tensorrt-rtx-cu13"
)


class Messages:
    """What a library says, kept to explain what it only answers with False or None."""

    def __init__(self, library: Library, say: Say | None = None) -> None:
        """`say` gets every message, as it comes."""
        self._title, self._say, self._kept = library.title, say, list[str]()

    def add(self, severity: str, text: str) -> None:
        """Take one message in."""
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self._kept = [*self._kept, text][-MAX_KEPT:]
        if self._say:
            self._say(severity, text)

    def errors(self) -> str:
        """The errors since this was last asked for."""
        told, self._kept = "; ".join(self._kept), []
        return told or f"{self._title} gives no reason"


def make_logger(library: Library, messages: Messages) -> Any:
    """An ILogger that hands all it is told to `messages`; the library calls it from threads of its own."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = library.load()

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            messages.add(severity.name, msg)

    return Logger()
