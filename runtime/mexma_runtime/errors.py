"""The errors of mexma-runtime: one small tree, so that a caller can catch what concerns it.

Every message says what, where, what was expected, what was there and what to do next. Errors
that a program may want to act on carry their data as attributes.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class MexmaError(Exception):
    """Whatever this project raises on purpose. `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(MexmaError):
    """A call or a command line that cannot be meant as it stands."""

    exit_code = 2


class MissingDependencyError(MexmaError):
    """An optional package is not installed; the message names the extra that brings it."""

    exit_code = 3

    def __init__(self, package: str, *, needed_for: str, extra: str, instead: str | None = None) -> None:
        self.package = package
        hint = f"pip install 'mexma-runtime[{extra}]'"
        way_out = f", or {instead}" if instead else ""
        super().__init__(f"{package} is not installed, and {needed_for} needs it: {hint}{way_out}")


class CheckpointError(MexmaError):
    """A checkpoint that cannot be read or written faithfully; `problems` lists all that was found."""

    exit_code = 4

    def __init__(self, where: str | Path, problems: list[str]) -> None:
        self.where, self.problems = str(where), list(problems)
        super().__init__(f"{where}: {problems[0]}" if len(problems) == 1 else _listed(where, problems))


class SourceError(MexmaError):
    """A checkpoint could not be found or fetched."""

    exit_code = 4


class BundleError(MexmaError):
    """A bundle, or one file of it, that cannot be trusted or read. `path` is the file at fault."""

    exit_code = 5

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path = Path(path)
        super().__init__(f"{path}: {reason}")


class EngineUnavailableError(MexmaError):
    """What was asked for (precision, backend, device) is not there; nothing was used in its place."""

    exit_code = 6


class DeviceError(MexmaError):
    """A device failed at what was asked of it."""

    exit_code = 9


class DeviceMemoryError(DeviceError):
    """The device's memory is too small for what was asked; the encoder stays usable."""


class ParityError(MexmaError):
    """An engine's vectors are further from the reference than its precision allows."""

    exit_code = 7


class InputError(MexmaError, ValueError):
    """Something in the input cannot be embedded. `index` is its position in the caller's sequence."""

    exit_code = 8

    def __init__(self, message: str, *, index: int | None = None) -> None:
        self.index = index
        super().__init__(message if index is None else f"input {index}: {message}")


class TextTooLongError(InputError):
    """A text has more tokens than the model takes, and truncation was refused."""


class FileError(MexmaError):
    """The system does not let a file, folder, pipe or device be read or written. `errno` is its number for why."""

    exit_code = 10

    def __init__(self, path: str | Path, doing: str, error: OSError, *, left: str = "") -> None:
        """`doing` such as `cannot be written`; `left`: what is there now."""
        self.path, self.errno = Path(path), error.errno
        advice = _ADVICE.get(error.errno or 0)
        reason = f"{error.strerror or error}{f': {advice}' if advice else ''}{f'; {left}' if left else ''}"
        super().__init__(f"{path}: {f'{doing}: ' if doing else ''}{reason}")


_ADVICE = {
    errno.EACCES: "give this user the right to, or choose another place",
    errno.EDQUOT: "free some of this user's quota, or choose another place",
    errno.EFBIG: "the file system or `ulimit -f` allows no larger file: raise it, or choose another place",
    errno.EIO: "the device or the network failed: the system's log (dmesg) may say why",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`)",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOSPC: "free some, or choose another place",
    errno.EROFS: "choose another place",
}
"""What to do, where the system's own words do not tell."""


@contextmanager
def file_errors(path: str | Path, doing: str) -> Iterator[None]:
    """An OSError of the block is raised as FileError; but that a pipe's reader has left, as it is."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise FileError(path, doing, error) from None


class EncoderClosedError(MexmaError):
    """The encoder was closed, or belongs to the process that this one was forked from."""


class EngineFailedError(MexmaError):
    """The engine has failed whatever was asked of it: nothing is embedded any more until the bundle is loaded again."""

    exit_code = 9


class EncoderBusyError(MexmaError):
    """The queue in front of the engine is full."""


class EncodeTimeoutError(MexmaError, TimeoutError):
    """The call did not finish within its timeout; the encoder stays usable."""


class EncodeCancelledError(MexmaError):
    """The call was cancelled between two batches; the encoder stays usable."""


class TruncationWarning(UserWarning):
    """Some texts of a call had more tokens than the model takes and were cut; `n_truncated` says how many."""

    def __init__(self, message: str, *, n_truncated: int) -> None:
        self.n_truncated = n_truncated
        super().__init__(message)


def _listed(where: str | Path, problems: list[str]) -> str:
    return f"{where}: {len(problems)} problems:\n" + "\n".join(f"  - {problem}" for problem in problems)
