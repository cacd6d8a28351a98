"""Opening a bundle: a folder with engines, weights and a tokenizer that bundle.json describes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mexma_runtime.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest
from mexma_runtime.bundle.whole_files import WholeFile
from mexma_runtime.errors import BundleError, file_errors

READ_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A folder whose manifest was read and whose files were checked."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], *, verify: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> Bundle:
        """Read bundle.json and check the files: all sizes, and the sha256 of all but the weights.

        `verify` checks the weights' sha256 too (seconds a gigabyte); `progress` is called with bytes done and in all.
        Raises BundleError that names the file and the reason, FileError for one that the system does not let be read.
        """
        folder = Path(folder)
        with file_errors(folder, "cannot be found"):
            folder = folder.absolute()  # wherever this process goes
        manifest = read_manifest(folder)
        if manifest is None:
            present = "the folder does not exist" if not folder.is_dir() else "the folder holds no bundle.json"
            raise BundleError(folder, f"not a bundle: {present}; `mexma export SOURCE --out {folder}` makes one")
        weights = {name for engine in manifest.engines for name in engine.weights}
        for entry in manifest.files:
            check_size(folder / entry.name, entry)
        hashed = [entry for entry in manifest.files if verify or entry.name not in weights]
        done, total = 0, sum(entry.size for entry in hashed)
        for entry in hashed:
            _check_hash(folder / entry.name, entry)
            done += entry.size
            if progress:
                progress(done, total)
        return cls(folder=folder, manifest=manifest)

    def path(self, name: str) -> Path:
        """Where a file of the manifest lies."""
        return self.folder / self.manifest.file(name).name

    def copy_files(self, folder: Path) -> None:
        """Copy into `folder` what it lacks of the bundle's files, or has otherwise, each whole or not at all.

        BundleError for a file that is not what the manifest says, FileError where the system refuses.
        """
        for entry in self.manifest.files:
            path = folder / entry.name
            try:
                check_size(path, entry)
                _check_hash(path, entry)
            except BundleError:
                source, digest = self.folder / entry.name, hashlib.sha256()
                with file_errors(source, "cannot be copied"), source.open("rb") as file, WholeFile(path) as copy:
                    while piece := file.read(READ_BYTES):
                        digest.update(piece)
                        copy.write(piece)
                    _require_hash(source, entry, digest.hexdigest())


def lock_folder(descriptor: int, folder: Path) -> OSError | None:
    """Keep others from writing into the bundle `folder` until `descriptor`, it opened, is closed.

    Returns the error of a file system that has no locks. BundleError where another is writing there.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise BundleError(folder, "another export or build is writing here: wait for it to end") from None
        return error
    return None


def read_manifest(folder: Path) -> Manifest | None:
    """bundle.json of `folder`, or None where there is none; BundleError where it cannot be read."""
    path = folder / MANIFEST_NAME
    text = read_text(path)
    return None if text is None else Manifest.from_json(text, path=path)


def read_text(path: Path) -> str | None:
    """A text file of a bundle, or None where there is none; BundleError where it cannot be read."""
    with file_errors(path, "cannot be read"):
        try:
            _require_file(path)
            return path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UnicodeDecodeError as error:
            raise BundleError(path, f"not UTF-8 ({error}): the file is damaged: remove it and export again") from None


def _require_file(path: Path) -> int:
    """Its size; BundleError where something else is there, or a link to nothing, FileNotFoundError where nothing is."""
    if path.is_symlink() and not path.exists():
        raise BundleError(path, f"is a link to {path.readlink()}, which is not there")
    there = path.stat()
    if not stat.S_ISREG(there.st_mode):
        raise BundleError(path, "is no file")
    return there.st_size


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(READ_BYTES):
                digest.update(piece)
    except OSError as error:
        error.filename = str(path)  # which reading does not say
        raise
    return digest.hexdigest()


def content_name(stem: str, sha256: str, suffix: str) -> str:
    """The name of a bundle's file by its content: `STEM.HASH.SUFFIX`."""
    return f"{stem}.{sha256[:16]}.{suffix}"


def check_size(path: Path, entry: FileEntry) -> None:
    """BundleError unless the file at `path` is there with the size of its `entry`."""
    with file_errors(path, "cannot be read"):
        try:
            size = _require_file(path)
        except FileNotFoundError:
            raise BundleError(path, "is missing: copy the bundle again, or export again") from None
    if size != entry.size:
        raise BundleError(path, f"expected {entry.size} bytes, got {size}: copy the bundle again, or export again")


def _check_hash(path: Path, entry: FileEntry) -> None:
    with file_errors(path, "cannot be read"):
        _require_hash(path, entry, sha256_of(path))


def _require_hash(path: Path, entry: FileEntry, actual: str) -> None:
    if actual != entry.sha256:
        raise BundleError(
            path, f"expected sha256 {entry.sha256}, got {actual}: damaged or another file; copy or export again"
        )
