"""sentence-transformers; int8 is made by its own exporters, with their defaults.

`options`: `backend`, "torch", "onnx", "openvino" or "bundle"; `int8`; `calibration`, which OpenVINO's int8 needs, is a
text file with a sentence a line. Of a bundle, `model_kwargs` are what it is loaded with. In torch, `attention` is an
attention implementation of transformers', and `dtype` "fp16" goes with those of flash-attn.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mexma_benchmarks.adapters.protocol import Model, Task, Vectors, run_adapter

LIBRARIES = {
    "torch": ("torch", "transformers"),
    "onnx": ("onnxruntime", "optimum-onnx"),
    "openvino": ("openvino", "optimum-intel", "nncf"),
    "bundle": ("torch", "mexma-runtime"),
}


def prepare(task: Task) -> None:
    """Export the checkpoint for the backend; quantize it where int8 is asked for."""
    if task.options["backend"] in ("torch", "bundle"):
        return
    with TemporaryDirectory(dir=task.folder) as temporary:
        os.environ["HF_HUB_CACHE"] = temporary  # where the exporter of OpenVINO puts calibration texts
        model = _load(task, task.checkpoint, export=True)
        exported = model[0].model
        if not task.options["int8"]:
            exported.save_pretrained(task.folder)
        elif task.options["backend"] == "onnx":
            from sentence_transformers.backend import export_dynamic_quantized_onnx_model

            export_dynamic_quantized_onnx_model(model, _onnx_recipe(), task.folder)
        else:
            from sentence_transformers.backend import export_static_quantized_openvino_model

            texts = Path(task.options["calibration"]).read_text(encoding="utf-8").rstrip("\n").split("\n")
            lines = [json.dumps({"sentence": text}) for text in texts]
            Path(temporary, "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
            export_static_quantized_openvino_model(
                model,
                None,
                task.folder,
                dataset_name=temporary,
                dataset_config_name="default",
                dataset_split="train",
                column_name="sentence",
            )
        exported.config.save_pretrained(task.folder)


def open_model(task: Task) -> Model:
    """Load the checkpoint, or what `prepare` made of it."""
    import torch

    torch.set_num_threads(task.n_threads)
    if task.options["backend"] == "bundle":
        from sentence_transformers import SentenceTransformer

        options = {"n_threads": task.n_threads, **task.options["model_kwargs"]}
        model = SentenceTransformer(task.folder, trust_remote_code=True, device=task.device, model_kwargs=options)
        return SentenceTransformers(model, task)
    if task.options["backend"] == "torch":
        return SentenceTransformers(_load(task, task.checkpoint, **_torch_options(task)), task)
    suffix = "onnx" if task.options["backend"] == "onnx" else "xml"
    (file,) = Path(task.folder).rglob(f"*.{suffix}")
    return SentenceTransformers(_load(task, task.folder, file_name=str(file.relative_to(task.folder))), task)


def _torch_options(task: Task) -> dict[str, Any]:
    """What transformers loads the model with, where it is not what it does by itself."""
    import torch

    options = task.options
    found = {"attn_implementation": options["attention"]} if "attention" in options else {}
    return found | ({"dtype": torch.float16} if options.get("dtype") == "fp16" else {})


def _load(task: Task, folder: str, **model_kwargs: Any) -> Any:
    """A SentenceTransformer of the model in `folder`, pooling as the task says whatever the checkpoint's files say."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    backend = task.options["backend"]
    if backend == "onnx":
        from onnxruntime import SessionOptions

        session_options = SessionOptions()
        session_options.intra_op_num_threads = task.n_threads
        provider = f"{'CUDA' if task.device.startswith('cuda') else 'CPU'}ExecutionProvider"
        model_kwargs |= {"session_options": session_options, "provider": provider}
    elif backend == "openvino":
        if task.device != "cpu":
            raise ValueError(f"OpenVINO runs on the CPU here; asked for {task.device}")
        # Else it computes in bf16 where the CPU has it, even if that is slower.
        model_kwargs |= {"ov_config": {"INFERENCE_NUM_THREADS": task.n_threads, "INFERENCE_PRECISION_HINT": "f32"}}
    transformer = Transformer(
        folder,
        backend=backend,
        model_kwargs={"local_files_only": True, **model_kwargs},
        max_seq_length=task.max_tokens,
        tokenizer_name_or_path=task.tokenizer,
    )
    modules = [transformer, Pooling(transformer.model.config.hidden_size, task.pooling)]
    if task.is_normalized:
        modules.append(Normalize())
    return SentenceTransformer(modules=modules, device=task.device)


def _onnx_recipe() -> str:
    """Which of its recipes for dynamic quantization is for this processor."""
    if platform.machine() in ("aarch64", "arm64"):
        return "arm64"
    flags = re.search(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    has = set(flags[1].split()) if flags else set()
    return "avx512_vnni" if "avx512_vnni" in has else "avx512" if "avx512f" in has else "avx2"


class SentenceTransformers(Model):
    """A SentenceTransformer."""

    def __init__(self, model: Any, task: Task) -> None:
        self._model = model
        backend = task.options["backend"]
        self.versions = {package: version(package) for package in ("sentence-transformers", *LIBRARIES[backend])}
        how = [str(task.options[name]) for name in ("attention", "dtype") if name in task.options]
        how += ["INFERENCE_PRECISION_HINT=f32"] * (backend == "openvino")
        self.provider = ", ".join([task.device, backend, *how])

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Embed texts in batches of 32, which it sorts by length itself."""
        vectors: Vectors = self._model.encode(list(texts), prompt="", show_progress_bar=False)
        return vectors

    def encode_ids(self, sentences: Sequence[Sequence[int]]) -> Vectors:
        """Embed one batch of token ids by its modules."""
        import torch

        with torch.inference_mode():
            ids = torch.tensor(sentences, device=self._model.device)
            output = self._model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            vectors: Vectors = output["sentence_embedding"].float().cpu().numpy()
            return vectors


if __name__ == "__main__":
    run_adapter(open_model, prepare)
