"""optimum's ORTModelForFeatureExtraction on its own export, in fp32. It leaves batches and pooling to its users."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mexma_benchmarks.adapters.protocol import Model, Task, run_adapter
from mexma_benchmarks.adapters.texts import Padded, PaddedModel


def prepare(task: Task) -> None:
    """Export to ONNX as `optimum-cli export onnx` does; weights over 2 GB land beside the graph."""
    from optimum.exporters.onnx import main_export

    main_export(
        task.checkpoint,
        output=task.folder,
        task="feature-extraction",
        library_name="transformers",  # else it exports what sentence-transformers would run
        do_validation=False,
    )


def open_model(task: Task) -> Model:
    """Load the exported model."""
    from onnxruntime import SessionOptions
    from optimum.onnxruntime import ORTModelForFeatureExtraction

    session_options = SessionOptions()
    session_options.intra_op_num_threads = task.n_threads
    provider = f"{'CUDA' if task.device.startswith('cuda') else 'CPU'}ExecutionProvider"
    model = ORTModelForFeatureExtraction.from_pretrained(
        task.folder, provider=provider, session_options=session_options, local_files_only=True
    )
    return Optimum(model, task)


class Optimum(PaddedModel):
    """A model that optimum exported."""

    def __init__(self, model: Any, task: Task) -> None:
        super().__init__(task)
        self._model = model
        self.versions = {package: version(package) for package in ("optimum-onnx", "onnxruntime")}
        self.provider = model.providers[0]

    def last_layer(self, batch: Padded) -> NDArray[np.float32]:
        """Compute a batch; token types are zeros, by optimum."""
        tokens: NDArray[np.float32] = self._model(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
        return tokens


if __name__ == "__main__":
    run_adapter(open_model, prepare)
