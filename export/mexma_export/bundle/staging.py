"""An export in progress: new files beside the old bundle, then one rename of bundle.json that makes them the bundle."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import warnings
from pathlib import Path
from types import TracebackType
from typing import Self

from mexma_runtime.bundle.bundle import check_size, content_name, lock_folder, read_manifest, sha256_of
from mexma_runtime.bundle.companions import COMPANIONS, MODULES, other_modules, write_companions
from mexma_runtime.bundle.manifest import LOCAL, MANIFEST_NAME, FileEntry, Manifest
from mexma_runtime.bundle.whole_files import flush_to_disk, write_whole
from mexma_runtime.errors import FileError, UsageError, file_errors

TEMPORARY = ".new-"
SPARE_BYTES = 64 << 20
"""Left free on the disk beside what is written."""

_HASHED = r"weights\.[0-9a-f]{16}\.bin|model\..+\.[0-9a-f]{16}\.onnx|tokenizer\.[0-9a-f]{16}\.json"
_NAMED = "|".join(map(re.escape, (MANIFEST_NAME, *COMPANIONS)))
_OURS = re.compile(rf"\.new-.*|{_HASHED}|\.({_NAMED}|{_HASHED})\.[0-9a-f]+\.part")


class Staging:
    """The folder of a bundle, held by one export at a time where its file system has locks.

    Files are written as `.new-*`, renamed to their final, content-addressed names when complete, and belong to the
    bundle once `publish` has replaced bundle.json. Until then the old bundle works; what a killed export left behind
    is removed by the next one.
    """

    def __init__(self, folder: Path) -> None:
        """Lock `folder` (made if need be). UsageError where it holds something else; BundleError where it is busy."""
        self.folder = folder
        self._warnings: dict[str, None] = {}
        with file_errors(folder, "cannot be made a folder"):
            self._created = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder, os.O_RDONLY)
        try:
            self._take_lock()
            self.previous = read_manifest(folder)
            self._refuse_foreign_files()
            self._sweep()
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was not published and let go of the folder. An OSError of the block is raised as FileError."""
        try:
            # Where the block raised, that is told, and not what fails here too.
            with contextlib.suppress(OSError) if error else file_errors(self.folder, "cannot be tidied up"):
                self._sweep()
            if self._created and not self.previous:
                with contextlib.suppress(OSError):  # something else lies there by now
                    self.folder.rmdir()
        finally:
            self._release()
        if isinstance(error, OSError) and error.errno is not None:
            doing = "" if error.filename else "cannot be written"
            raise FileError(error.filename or self.folder, doing, error, left="nothing was published") from error

    @property
    def warnings(self) -> tuple[str, ...]:
        """What this file system could not assure."""
        return tuple(self._warnings)

    def require_space(self, n_bytes: int) -> None:
        """UsageError where the disk lacks `n_bytes` and a little more."""
        usage = shutil.disk_usage(self.folder)
        if not usage.total:
            self._warn("this file system does not say how much is free: whether the bundle fits will be seen")
        elif (free := usage.free) < n_bytes + SPARE_BYTES:
            raise UsageError(
                f"{self.folder}: needs {(n_bytes + SPARE_BYTES) / 1e9:.2f} GB of free disk, {free / 1e9:.2f} GB are "
                "there: free some, choose another --out, or fewer precisions. Nothing was written"
            )

    def temporary(self, purpose: str) -> Path:
        """Where to write a new file; nothing lies there."""
        path = self.folder / f"{TEMPORARY}{purpose}"
        path.unlink(missing_ok=True)
        return path

    def keep(self, path: Path, name: str, *, sha256: str | None = None) -> FileEntry:
        """Flush the complete file `path` to the disk and give it its final name."""
        with path.open("rb") as file:
            self._flush(file.fileno(), "files")
        entry = FileEntry(name=name, sha256=sha256 or sha256_of(path), size=path.stat().st_size)
        path.replace(self.folder / name)
        return entry

    def keep_bytes(self, content: bytes, stem: str, suffix: str) -> FileEntry:
        """Write a file under the name of its content."""
        path = self.temporary(stem)
        path.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        return self.keep(path, content_name(stem, sha256, suffix), sha256=sha256)

    def publish(self, manifest: Manifest) -> None:
        """Make `manifest` the bundle, in one rename; what it does not list is removed when the staging is left.

        The companions follow: they say what it says.

        BundleError, and the bundle as it was, where a file of an engine that was there before is damaged or gone.
        """
        for entry in manifest.files:
            check_size(self.folder / entry.name, entry)
        self._flush_names()  # of the new files, before a manifest lists them
        # Behind a link lies a store of files by their content, such as the hub client's cache.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # `keep` has told it already
            write_whole(self.folder / MANIFEST_NAME, manifest.to_json().encode(), replaces_link=True)
            write_companions(self.folder, manifest)
        self._flush_names()
        self.previous = manifest

    def _take_lock(self) -> None:
        if error := lock_folder(self._lock, self.folder):
            self._warn(f"it cannot be locked ({error.strerror}): see to it that no other export writes there meanwhile")

    def _flush_names(self) -> None:
        with file_errors(self.folder, "cannot be flushed to the disk"):
            self._flush(self._lock, "folders")

    def _flush(self, descriptor: int, kind: str) -> None:
        if error := flush_to_disk(descriptor):
            self._warn(
                f"this file system flushes no {kind} ({error.strerror}): after a power failure the bundle may be the "
                "old one, or incomplete: `mexma info --verify` tells"
            )

    def _warn(self, what: str) -> None:
        self._warnings[f"{self.folder}: {what}"] = None

    def _refuse_foreign_files(self) -> None:
        names = [path.name for path in self.folder.iterdir()]
        foreign = sorted(name for name in names if name != LOCAL and not _OURS.fullmatch(name))
        if foreign and not self.previous:
            raise UsageError(
                f"{self.folder}: neither empty nor a bundle (it holds {', '.join(foreign[:5])}): choose another --out"
            )
        own = self.previous.companions if self.previous else ()
        if in_the_way := [name for name in foreign if name in COMPANIONS and name not in own]:
            raise UsageError(
                f"{self.folder}: {', '.join(in_the_way)}: bundle.json does not name it, so it is yours, and the bundle "
                "gets one of its own: move it elsewhere"
            )
        if others := other_modules(self.folder):
            raise UsageError(
                f"{self.folder / MODULES}: a model of more than the bundle was saved here ({', '.join(others)}), and "
                "the bundle's own file takes its place: export into another folder, or move it elsewhere"
            )

    def _sweep(self) -> None:
        listed = {entry.name for entry in self.previous.files} if self.previous else set()
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name) and path.name not in listed:
                path.unlink()

    def _release(self) -> None:
        os.close(self._lock)
