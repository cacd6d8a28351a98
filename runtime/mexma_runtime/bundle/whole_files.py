"""Files that are written whole or not at all; what is no plain file gets the whole or nothing."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from mexma_runtime.errors import FileError

STDOUT = Path("-")

_NO_NEW_FILE = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_RENAME = (errno.EBUSY, errno.EPERM, errno.EACCES)
"""Of a file that is mounted by itself, or another user's in a sticky folder."""
_LOST = (errno.EIO, errno.ENOSPC, errno.EDQUOT)
"""Of the errors of fsync, what tells that something was lost. Others a file system gives that flushes no files, or no
folders: network shares, FUSE and WSL, each in its own way."""
_MAX_NAME_BYTES = 200
"""Of the file's name in its hidden file's: file systems take 255."""


class WholeFile:
    """Writes a hidden file beside `path`, which becomes `path` when the `with` block ends well.

    A link is followed, or gives way to the file where it `replaces_link`; a file that is replaced keeps its rights. The
    hidden file is locked while it is written, so that what a killed process has left of the same file is known from
    what a living one is writing, and is removed. What cannot be replaced is written when the block ends well, from a
    temporary file: standard output (`-`), a pipe or terminal, and a file in a folder that takes no other, or mounted by
    itself. A device that can be wound back, such as /dev/null, is written at once. Raises FileError where something
    refuses, and BrokenPipeError where a pipe's reader has left.
    """

    def __init__(self, path: Path, *, replaces_link: bool = False) -> None:
        self._path = self._where = path
        self._left = ""
        is_nameless = _is_nameless(path)
        self._place = path if replaces_link or is_nameless else Path(os.path.realpath(path))
        self._part: Path | None = None
        with self._errors():
            self._stream = _open_stream(path)
            if self._stream:
                is_kept = not stat.S_ISREG(os.fstat(self._stream.fileno()).st_mode) and self._stream.seekable()
                self._file = self._stream if is_kept else self._open_temporary()
            else:
                self._file = self._open_temporary() if is_nameless else self._open_part()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flush the file to the disk and put it in its place, or remove it where the block raised."""
        try:
            if kind is None:
                with self._errors():
                    self._file.flush()
                    self._where = self._path
                    self._publish()
        finally:
            self.discard()

    def write(self, data: bytes | memoryview) -> None:
        """Write `data` where the last write ended."""
        try:  # a row at a time, where a context manager would be felt
            self._file.write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._refusal(error) from None

    def rewind(self) -> None:
        """Let the next write begin at the start of the file."""
        with self._errors():
            self._file.seek(0)

    def tell(self) -> int:
        """Where the next write begins, in bytes."""
        return self._file.tell()

    def discard(self) -> None:
        """Close the file; what was not put in its place goes."""
        if self._part:
            self._part.unlink(missing_ok=True)
        for file in (self._file, self._stream):
            with suppress(OSError):  # what could not be written cannot be flushed either, and was told already
                if file:
                    file.close()

    def _publish(self) -> None:
        if self._stream:
            if self._stream is not self._file:
                self._file.seek(0)
                shutil.copyfileobj(self._file, self._stream)
            self._stream.flush()
        elif self._part is None:
            self._overwrite()
        else:
            self._flush(self._file)
            try:
                self._part.replace(self._place)
            except OSError as error:
                if error.errno not in _NO_RENAME:
                    raise
                self._overwrite()

    def _overwrite(self) -> None:
        self._file.seek(0)
        with self._place.open("wb") as file:
            self._left = "what is there now is not whole"
            shutil.copyfileobj(self._file, file)
            self._flush(file)

    def _flush(self, file: BinaryIO) -> None:
        file.flush()
        if error := flush_to_disk(file.fileno()):
            warnings.warn(
                f"{self._path}: this file system flushes no files ({error.strerror}): after a power failure it may be "
                "incomplete",
                RuntimeWarning,
                stacklevel=2,
            )

    def _open_temporary(self) -> BinaryIO:
        self._where = Path(tempfile.gettempdir())
        return tempfile.TemporaryFile()

    def _open_part(self) -> BinaryIO:
        """The hidden file, locked; or a temporary one where no file can be made beside one that can be written."""
        _require_replaceable(self._place)
        stem = _stem(self._place.name)
        self._sweep(stem)
        while True:
            part = self._place.with_name(f"{stem}{secrets.token_hex(8)}.part")
            try:
                file = part.open("x+b")
            except OSError as error:
                is_there = os.access(self._place, os.W_OK) and not self._place.is_symlink()
                if is_there and error.errno in _NO_NEW_FILE:
                    return self._open_temporary()
                raise
            with suppress(OSError):  # a file system without locks, where nothing is swept either
                fcntl.flock(file, fcntl.LOCK_EX)
            # Another process may have swept the file between its making and its lock.
            with suppress(FileNotFoundError):
                if part.stat().st_ino == os.fstat(file.fileno()).st_ino:
                    self._part, self._left = part, "nothing of it was kept"
                    _keep_rights(self._place, file)
                    return file
            file.close()

    def _sweep(self, stem: str) -> None:
        for path in self._place.parent.glob(f"{glob.escape(stem)}*.part"):
            if re.fullmatch("[0-9a-f]+", path.name.removeprefix(stem).removesuffix(".part")):
                with suppress(OSError), path.open("rb") as left:  # a living process has it, or has just renamed it
                    fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._refusal(error) from None

    def _refusal(self, error: OSError) -> FileError:
        return FileError(self._where, "cannot be written", error, left=self._left)


def write_whole(path: Path, data: bytes | memoryview, *, replaces_link: bool = False) -> None:
    """Write `path` beside itself, flush it to the disk, and rename: whoever reads finds the old file or the new one.

    Raises as WholeFile, which says what becomes of links, pipes and devices.
    """
    with WholeFile(path, replaces_link=replaces_link) as file:
        file.write(data)


def flush_to_disk(descriptor: int) -> OSError | None:
    """Flush an open file or folder; the error of a file system that flushes none. OSError where something was lost."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in _LOST:
            raise
        return error
    return None


def require_writable(path: Path, *, replaces_link: bool = False) -> None:
    """FileError where the plain file `path` cannot be written: to be told before long work, and not behind it."""
    WholeFile(path, replaces_link=replaces_link).discard()


def is_stdout(path: Path) -> bool:
    """Whether what is written to `path` goes where standard output goes: `-`, /dev/stdout."""
    if path == STDOUT:
        return True
    try:
        there, ours = path.stat(), os.fstat(1)
    except OSError:
        return False
    return os.path.samestat(there, ours) and not stat.S_ISCHR(there.st_mode)


def _open_stream(path: Path) -> BinaryIO | None:
    """What cannot be renamed over; None for a plain file, and for none."""
    if is_stdout(path):
        if sys.stdout is None:  # closed, and its number may be another file's by now
            raise OSError(errno.EBADF, "standard output is closed")
        sys.stdout.flush()
        with suppress(OSError):  # some parents leave it so that a write takes what there is room for
            os.set_blocking(1, True)
        return os.fdopen(os.dup(1), "wb")
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISREG(mode):
        return None
    return path.open("wb")  # which refuses a folder


def _is_nameless(path: Path) -> bool:
    """Whether there is a file at `path` that has no name: /dev/fd/3 of one that was removed, or never had any."""
    try:
        there = path.stat()
    except OSError:
        return False
    try:
        return not os.path.samestat(there, Path(os.path.realpath(path)).stat())
    except FileNotFoundError:
        return True


def _require_replaceable(path: Path) -> None:
    """OSError where neither a rename nor writing will change the file at `path`: an immutable or mounted one."""
    try:
        os.close(os.open(path, os.O_RDWR))
    except (FileNotFoundError, PermissionError) as error:
        if error.errno == errno.EPERM:
            raise
    except OSError as error:
        if error.errno == errno.EROFS:
            raise


def _stem(name: str) -> str:
    """What the names of hidden files of `name` begin with."""
    is_long = len(os.fsencode(name)) > _MAX_NAME_BYTES
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest() if is_long else name}."


def _keep_rights(path: Path, file: BinaryIO) -> None:
    """Give `file` the rights of the one at `path`, if one is there; owner and group as far as this user may."""
    with suppress(FileNotFoundError):
        there = path.stat()
        for user, group in ((there.st_uid, -1), (-1, there.st_gid)):
            with suppress(OSError):
                os.fchown(file.fileno(), user, group)
        with suppress(OSError):  # a file system without rights
            os.fchmod(file.fileno(), stat.S_IMODE(there.st_mode))
