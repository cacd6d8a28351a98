"""What backends have in common whose engines run on the host: a batch is done when it was run."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from mexma_runtime.backends.base import BackendInfo, Finish, OnRows, done
from mexma_runtime.device_vectors import DeviceRows
from mexma_runtime.errors import UsageError
from mexma_runtime.process import NATIVE, keep_for_ever
from mexma_runtime.types import Ragged, Vectors

TRIM_INTERVAL_S = 10.0
"""glibc keeps the pages of what callers and libraries free; so often at most it has to give them back."""
TRIM_SHARE = 0.001
"""Of the time, what that may take: 0.2 to 1.6 ms here, but 300 ms beside half a million free blocks of 6 kB."""


class HostBackend:
    """The rest of a Backend, by its `run`."""

    info: BackendInfo
    copy_s: float = 0.0
    compute_s: float = 0.0
    _next_trim_s: float = 0.0

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # A library destroys an engine without the interpreter's lock, as it computes: see process.py. At the very end
        # this module's names are gone.
        if is_finalizing():
            return
        try:
            with NATIVE:
                self.close()
        except SystemExit:
            keep_for_ever(self)

    def run(self, batch: Ragged, out: Vectors, on_rows: OnRows | None = None) -> None:
        """Embed `batch` into `out`: float32 `(n, dim)`, C-contiguous; vectors as pooled."""
        raise NotImplementedError

    def start(
        self, batch: Ragged, out: Vectors | DeviceRows, *, normalize: bool, on_rows: OnRows | None = None
    ) -> Finish:
        """Embed `batch` now."""
        assert not isinstance(out, DeviceRows)
        assert not normalize
        self.run(batch, out, on_rows)
        if (start_s := time.monotonic()) >= self._next_trim_s:
            _trim_heap()
            end_s = time.monotonic()
            self._next_trim_s = end_s + max(TRIM_INTERVAL_S, (end_s - start_s) / TRIM_SHARE)
        return done

    def close(self) -> None:
        """Release the engine."""
        raise NotImplementedError

    def device_vectors(self, shape: tuple[int, ...]) -> NoReturn:
        """UsageError: there is no device to keep them on."""
        raise UsageError(
            f"output='device' is for a GPU, and this encoder runs on {self.info.device}: its vectors are NumPy arrays"
        )


def _trim_heap() -> None:
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # musl has none
        trim(0)
