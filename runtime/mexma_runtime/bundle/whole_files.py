"""Files that are written whole or not at all."""

from __future__ import annotations

import fcntl
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from mexma_runtime.errors import UsageError


class WholeFile:
    """Writes a hidden file beside `path`, which becomes `path` when the `with` block ends well.

    The hidden file is locked while it is written. So what a killed process has left of the same file is known from
    what a living one is writing, and is removed. Raises UsageError where the disk is full or the folder refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")
        with self._errors():
            if path.is_dir():
                raise IsADirectoryError(0, "it is a folder")
            self._sweep()
            self._file = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flush the file to the disk and rename it, or remove it where the block raised."""
        try:
            if kind is None:
                with self._errors():
                    self._file.flush()
                    os.fsync(self._file.fileno())
                    self._part.replace(self._path)
        finally:
            self._part.unlink(missing_ok=True)
            with suppress(OSError):  # what could not be written cannot be flushed either, and was told already
                self._file.close()

    def write(self, data: bytes | memoryview) -> None:
        """Write `data` where the last write ended."""
        try:  # a row at a time, where a context manager would be felt
            self._file.write(data)
        except OSError as error:
            raise self._refusal(error) from None

    def rewind(self) -> None:
        """Let the next write begin at the start of the file."""
        with self._errors():
            self._file.seek(0)

    def tell(self) -> int:
        """Where the next write begins, in bytes."""
        return self._file.tell()

    def _open(self) -> BinaryIO:
        while True:
            file = self._part.open("wb")
            with suppress(OSError):  # a file system without locks, where nothing is swept either
                fcntl.flock(file, fcntl.LOCK_EX)
            # Another process may have swept the file between its making and its lock.
            with suppress(FileNotFoundError):
                if self._part.stat().st_ino == os.fstat(file.fileno()).st_ino:
                    return file
            file.close()

    def _sweep(self) -> None:
        prefix, suffix = f".{self._path.name}.", ".part"
        for path in self._path.parent.glob(f"{glob.escape(prefix)}*{suffix}"):
            if path.name.removeprefix(prefix).removesuffix(suffix).isdecimal():
                with suppress(OSError), path.open("rb") as left:  # a living process has it, or has just renamed it
                    fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._refusal(error) from None

    def _refusal(self, error: OSError) -> UsageError:
        return UsageError(f"{self._path}: cannot be written: {error.strerror}; nothing of it was kept")


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write `path` beside itself, flush it to the disk, and rename: whoever reads finds the old file or the new one.

    Raises UsageError where it cannot be written.
    """
    with WholeFile(path) as file:
        file.write(data)
