"""OpenVINO, converted from transformers' PyTorch model; int8 by NNCF's static quantization for transformers.

`options`: `int8` is true unless it says false; `calibration`, which int8 needs, is a text file with a sentence a line.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mexma_benchmarks.adapters.protocol import Model, Task, run_adapter
from mexma_benchmarks.adapters.texts import Padded, PaddedModel, load_tokenizer, tokenize

N_CALIBRATION = 300
"""Sentences that NNCF looks at unless told otherwise."""


def prepare(task: Task) -> None:
    """Convert the checkpoint."""
    path = _model_path(task)
    if not _is_int8(task):
        _convert(task.checkpoint, path)
        return
    inputs = _calibration(task)
    float_path = path.with_name("float.xml")
    _convert(task.checkpoint, float_path)
    _quantize(float_path, inputs, path)
    for suffix in (".xml", ".bin"):
        float_path.with_suffix(suffix).unlink()


def open_model(task: Task) -> Model:
    """Load what `prepare` wrote, for one request at a time."""
    import openvino

    if task.device != "cpu":
        raise ValueError(f"device: expected cpu, got {task.device}: OpenVINO is measured on CPUs")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": task.n_threads,
        "INFERENCE_PRECISION_HINT": "f32",  # else float products are bf16 where the CPU has it
    }
    return OpenVino(openvino.Core().compile_model(_model_path(task), "CPU", settings), task)


class OpenVino(PaddedModel):
    """A compiled model."""

    provider = "CPU, INFERENCE_PRECISION_HINT=f32"

    def __init__(self, compiled: Any, task: Task) -> None:
        super().__init__(task)
        self.versions = {name: version(name) for name in ("openvino", *(["nncf"] if _is_int8(task) else []))}
        self._request = compiled.create_infer_request()

    def last_layer(self, batch: Padded) -> NDArray[np.float32]:
        """Compute a batch; the result is valid until the next."""
        outputs = self._request.infer(_inputs(batch), share_inputs=True, share_outputs=True)
        tokens: NDArray[np.float32] = outputs[0]
        return tokens


def _is_int8(task: Task) -> bool:
    return bool(task.options.get("int8", True))


def _model_path(task: Task) -> Path:
    return Path(task.folder, "int8.xml" if _is_int8(task) else "float.xml")


def _inputs(batch: Padded) -> dict[str, NDArray[np.int64]]:
    return {"input_ids": batch.ids, "attention_mask": batch.mask}


def _convert(checkpoint: str, path: Path) -> None:
    import openvino
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32, add_pooling_layer=False).eval()
    example = Padded(ids=np.full((2, 8), 5), mask=np.tri(8, dtype=np.int64)[[4, 7]])
    example_input = {name: torch.from_numpy(array) for name, array in _inputs(example).items()}
    converted = openvino.convert_model(model, example_input=example_input)
    openvino.save_model(converted, path, compress_to_fp16=False)


def _calibration(task: Task) -> list[Padded]:
    file = task.options.get("calibration")
    if file is None:
        raise ValueError("options: calibration: int8 needs a text file to calibrate on, a sentence a line; got none")
    lines = [line for line in Path(file).read_text(encoding="utf-8").split("\n") if line.strip()]
    rows = np.linspace(0, len(lines) - 1, min(len(lines), N_CALIBRATION)).astype(int)
    sentences = tokenize(load_tokenizer(task), [lines[row] for row in rows])
    return [Padded(ids=np.array([ids]), mask=np.ones((1, len(ids)), dtype=np.int64)) for ids in sentences]


def _quantize(source: Path, batches: list[Padded], path: Path) -> None:
    import nncf
    import openvino

    dataset = nncf.Dataset(batches, _inputs)
    model = openvino.Core().read_model(source)  # maps the weights
    quantized = nncf.quantize(model, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(batches))
    openvino.save_model(quantized, path, compress_to_fp16=False)


if __name__ == "__main__":
    run_adapter(open_model, prepare)
