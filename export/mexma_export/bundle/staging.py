"""An export in progress: new files beside the old bundle, then one rename of bundle.json that makes them the bundle."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from mexma_runtime.bundle.bundle import content_name, read_manifest, sha256_of
from mexma_runtime.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest
from mexma_runtime.bundle.whole_files import write_whole
from mexma_runtime.errors import BundleError, UsageError

TEMPORARY = ".new-"
LOCAL = "local"
"""What belongs to one machine; outside of the hashes and never touched here."""
SPARE_BYTES = 64 << 20
"""Left free on the disk beside what is written."""

_OURS = re.compile(
    r"\.new-.*|\.bundle\.json\.\d+\.part|weights\.[0-9a-f]{16}\.bin|model\..+\.[0-9a-f]{16}\.onnx"
    r"|tokenizer\.[0-9a-f]{16}\.json"
)


class Staging:
    """The folder of a bundle, held by one export at a time.

    Files are written as `.new-*`, renamed to their final, content-addressed names when complete, and belong to the
    bundle once `publish` has replaced bundle.json. Until then the old bundle works; what a killed export left behind
    is removed by the next one.
    """

    def __init__(self, folder: Path) -> None:
        """Lock `folder` (made if need be). UsageError where it holds something else; BundleError where it is busy."""
        self.folder = folder
        self._created = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{folder}: cannot be made a folder: {error.strerror}") from None
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
        """Remove what was not published and let go of the folder."""
        try:
            self._sweep()
            if self._created and not self.previous:
                with contextlib.suppress(OSError):  # something else lies there by now
                    self.folder.rmdir()
        finally:
            self._release()

    def require_space(self, n_bytes: int) -> None:
        """UsageError where the disk lacks `n_bytes` and a little more."""
        free = shutil.disk_usage(self.folder).free
        if free < n_bytes + SPARE_BYTES:
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
            os.fsync(file.fileno())
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
        """Make `manifest` the bundle, in one rename; what it does not list is removed when the staging is left."""
        os.fsync(self._lock)  # the names of the new files, before a manifest lists them
        write_whole(self.folder / MANIFEST_NAME, manifest.to_json().encode())
        os.fsync(self._lock)
        self.previous = manifest

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise BundleError(self.folder, "another export is writing here: wait for it to end") from None
            raise

    def _refuse_foreign_files(self) -> None:
        names = [path.name for path in self.folder.iterdir()]
        foreign = [name for name in names if name != LOCAL and not _OURS.fullmatch(name)]
        if foreign and not self.previous:
            raise UsageError(
                f"{self.folder}: neither empty nor a bundle (it holds {', '.join(sorted(foreign)[:5])}): "
                "choose another --out"
            )

    def _sweep(self) -> None:
        listed = {entry.name for entry in self.previous.files} if self.previous else set()
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name) and path.name not in listed:
                path.unlink()

    def _release(self) -> None:
        os.close(self._lock)
