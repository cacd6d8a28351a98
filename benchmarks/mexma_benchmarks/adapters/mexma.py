"""Our own engines: `options` say which one of the bundle in the task's folder, on which backend."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mexma_benchmarks.adapters.protocol import Model, Task, Vectors, run_adapter
from mexma_runtime import Encoder
from mexma_runtime.types import Dialect, Ragged

BATCHING = {
    ("cpu", False): "groups of equal length",
    ("cuda", False): "sorted by length, padded",
    ("cuda", True): "tokens end to end, unpadded",
}
"""By the kind of device and whether the engine is packed."""


def open_model(task: Task) -> Model:
    """Load the engine that `options` name: `engine` and `backend`."""
    options = task.options
    encoder = Encoder.load(
        task.folder,
        engine=options["engine"],
        backend=options["backend"],
        device=task.device,
        n_threads=task.n_threads,
    )
    return Mexma(encoder)


class Mexma(Model):
    """An encoder."""

    def __init__(self, encoder: Encoder) -> None:
        info = encoder.info
        self._encoder = encoder
        self.versions = {info.backend: info.version}
        self.provider = info.providers[0]
        self.batching = BATCHING[info.device.partition(":")[0], info.dialect is Dialect.PACKED]

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Embed texts, which have their prompt in front already."""
        return self._encoder.encode(texts, prompt="")

    def encode_ids(self, sentences: Sequence[Sequence[int]]) -> Vectors:
        """Embed token ids."""
        return self._encoder.encode_ids(Ragged.from_sequences(sentences))

    def stages_s(self) -> dict[str, float]:
        """What the encoder counts."""
        return {name.removesuffix("_s"): s for name, s in dataclasses.asdict(self._encoder.times).items()}


if __name__ == "__main__":
    run_adapter(open_model)
