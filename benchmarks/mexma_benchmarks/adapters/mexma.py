"""Our own engines: `options` say which one of the bundle in the task's folder, and how `Encoder.load` opens it."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Sequence
from typing import Any

from mexma_benchmarks.adapters.protocol import Ids, Lengths, Model, NotOfferedError, Task, Vectors, run_adapter
from mexma_runtime import Encoder
from mexma_runtime.types import Dialect, Ragged

OPTIONS = ("engine", "backend", "attention", "graphs")
N_WORKERS = 64
MAX_WAITING = 10_000
"""None of a benchmark's clients is refused."""
BATCHING = {
    ("cpu", False): "groups of equal length",
    ("cuda", False): "sorted by length, padded",
    ("cuda", True): "tokens end to end, unpadded",
}
"""By the kind of device and whether the engine is packed."""


def open_model(task: Task) -> Model:
    """Load the engine that `options` name: `engine`, `backend`, and whatever else of OPTIONS they have."""
    options: Any = {name: task.options[name] for name in OPTIONS if name in task.options}
    options |= {"device": task.device, "n_threads": task.n_threads, "max_waiting": MAX_WAITING}
    return Mexma(Encoder.load(task.folder, **options))


class Mexma(Model):
    """An encoder."""

    def __init__(self, encoder: Encoder) -> None:
        info = encoder.info
        self._encoder = encoder
        self.versions = {info.backend: info.version}
        self.provider = info.providers[0]
        self.n_workers, self.max_batch_tokens = N_WORKERS, info.max_batch_tokens
        self.batching = BATCHING[info.device.partition(":")[0], info.dialect is Dialect.PACKED]

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Embed texts, which have their prompt in front already."""
        return self._encoder.encode(texts, prompt="")

    def encode_async(self, texts: Sequence[str]) -> Awaitable[Vectors]:
        """The same in an event loop."""
        if not hasattr(self._encoder, "aencode"):
            raise NotOfferedError("this version has no interface for asyncio")
        return self._encoder.aencode(texts, prompt="")

    def encode_ids(self, sentences: Sequence[Sequence[int]]) -> Vectors:
        """Embed token ids."""
        return self._encoder.encode_ids(Ragged.from_sequences(sentences))

    def encode_ragged(self, ids: Ids, lengths: Lengths) -> Vectors:
        """Embed token ids that lie end to end."""
        return self._encoder.encode_ids(Ragged.from_lengths(ids, lengths))

    def warm_up(self) -> None:
        """As the guide says."""
        self._encoder.warmup()

    def stages_s(self) -> dict[str, float]:
        """What the encoder counts."""
        return {name.removesuffix("_s"): s for name, s in dataclasses.asdict(self._encoder.times).items()}


if __name__ == "__main__":
    run_adapter(open_model)
