"""CTranslate2, with its own converter from transformers. `options`: `compute_type`, "int8" unless it says "float32"."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mexma_benchmarks.adapters.protocol import Model, Task, run_adapter
from mexma_benchmarks.adapters.texts import Padded, PaddedModel, load_tokenizer


def prepare(task: Task) -> None:
    """Convert the checkpoint."""
    from ctranslate2.converters import TransformersConverter  # with PyTorch, which serving does without

    converter = TransformersConverter(task.checkpoint)
    converter.load_tokenizer = lambda *_, **__: _Vocabulary(task)
    converter.convert(task.folder, quantization=_compute_type(task), force=True)


def open_model(task: Task) -> Model:
    """Load what `prepare` wrote."""
    import ctranslate2

    device, _, index = task.device.partition(":")
    encoder = ctranslate2.Encoder(
        task.folder,
        device,
        device_index=int(index or 0),
        compute_type=_compute_type(task),
        intra_threads=task.n_threads,
    )
    return CTranslate2(encoder, task)


def _compute_type(task: Task) -> str:
    return str(task.options.get("compute_type", "int8"))


class CTranslate2(PaddedModel):
    """An encoder of CTranslate2."""

    def __init__(self, encoder: Any, task: Task) -> None:
        import ctranslate2

        super().__init__(task)
        self.versions = {"ctranslate2": ctranslate2.__version__}
        self.provider = f"{encoder.device}, {encoder.compute_type}"
        self._encoder, self._library = encoder, ctranslate2

    def last_layer(self, batch: Padded) -> NDArray[np.float32]:
        """Compute a batch."""
        ids, lengths = batch.ids.astype(np.int32), batch.mask.sum(axis=1, dtype=np.int32)
        view = self._library.StorageView.from_array  # does not keep the array alive
        tokens = self._encoder.forward_batch(view(ids), view(lengths)).last_hidden_state
        return np.array(tokens.to_device(self._library.Device.cpu))


class _Vocabulary:
    """What the converter asks of a tokenizer: a name for every row of the embedding table."""

    def __init__(self, task: Task) -> None:
        config = json.loads(Path(task.checkpoint, "config.json").read_text(encoding="utf-8"))
        tokenizer = load_tokenizer(task)
        self._rows = {tokenizer.id_to_token(row) or f"<row {row}>": row for row in range(config["vocab_size"])}
        self.unk_token = next(name for name in ("<unk>", "[UNK]") if name in self._rows)

    def get_vocab(self) -> Mapping[str, int]:
        """Rows by their names."""
        return self._rows


if __name__ == "__main__":
    run_adapter(open_model, prepare)
