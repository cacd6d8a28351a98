"""Several devices behind one backend: each batch goes to the one with the least to do."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Sequence
from typing import NoReturn

from mexma_runtime.backends.base import Backend, BackendInfo, Finish, OnRows
from mexma_runtime.device_vectors import DeviceRows
from mexma_runtime.errors import UsageError
from mexma_runtime.types import Ragged, Vectors


class SeveralBackends:
    """The same engine on several devices. A call's batches are shared among them by the tokens under way on each."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._backends = list(backends)
        self._n_tokens = [0] * len(self._backends)
        self._lock = threading.Lock()

    @property
    def info(self) -> BackendInfo:
        """The first one's, with all devices and processors, and what they have together."""
        infos = [backend.info for backend in self._backends]
        policy = dataclasses.replace(
            infos[0].policy, max_batch_tokens=min(info.policy.max_batch_tokens for info in infos)
        )
        return dataclasses.replace(
            infos[0],
            device=",".join(info.device for info in infos),
            processor="; ".join(dict.fromkeys(info.processor for info in infos)),
            attention="; ".join(dict.fromkeys(info.attention for info in infos)),
            policy=policy,
            n_pending=sum(info.n_pending for info in infos),
            n_graphs=sum(info.n_graphs for info in infos),
            graph_bytes=sum(info.graph_bytes for info in infos),
        )

    @property
    def copy_s(self) -> float:
        """Seconds of all backends together, getting ids in and vectors out."""
        return sum(backend.copy_s for backend in self._backends)

    @property
    def compute_s(self) -> float:
        """Seconds of all backends together, computing."""
        return sum(backend.compute_s for backend in self._backends)

    def start(
        self, batch: Ragged, out: Vectors | DeviceRows, *, normalize: bool, on_rows: OnRows | None = None
    ) -> Finish:
        """Queue `batch` where the fewest tokens are under way."""
        n_tokens = batch.ids.size
        with self._lock:
            chosen = self._n_tokens.index(min(self._n_tokens))
            self._n_tokens[chosen] += n_tokens
        try:
            finish = self._backends[chosen].start(batch, out, normalize=normalize, on_rows=on_rows)
        except BaseException:
            self._finished(chosen, n_tokens)
            raise
        return functools.partial(self._finish, finish, chosen, n_tokens)

    def device_vectors(self, shape: tuple[int, ...]) -> NoReturn:
        """UsageError: vectors of one call are on several devices."""
        raise UsageError(
            f"output='device' needs an encoder on one device, and this one is on {self.info.device}: load one a device"
        )

    def close(self) -> None:
        """Release the engines."""
        for backend in self._backends:
            backend.close()

    def _finish(self, finish: Finish, chosen: int, n_tokens: int) -> None:
        try:
            finish()
        finally:
            self._finished(chosen, n_tokens)

    def _finished(self, chosen: int, n_tokens: int) -> None:
        with self._lock:
            self._n_tokens[chosen] -= n_tokens
