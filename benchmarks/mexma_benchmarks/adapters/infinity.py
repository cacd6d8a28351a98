"""infinity-emb's AsyncEmbeddingEngine, in this process. `options`: `dtype`, "auto" or "int8".

Its torch engine: the one that pools by cls or mean and leaves vectors as they are where that is asked for.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mexma_benchmarks.adapters.protocol import Model, Task, Vectors, run_adapter

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def prepare(task: Task) -> None:
    """Write the folder from which infinity reads how to pool and where to cut; the checkpoint's files are linked."""
    folder, checkpoint = Path(task.folder), Path(task.checkpoint)
    tokenizer = [file for name in TOKENIZER_FILES if (file := Path(task.tokenizer, name)).is_file()]
    for file in (checkpoint / "config.json", *checkpoint.glob("model*.safetensors*"), *tokenizer):
        (folder / file.name).symlink_to(file.resolve())
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate([("Transformer", ""), ("Pooling", "1_Pooling")])
    ]
    hidden_size = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    pooling = {
        "word_embedding_dimension": hidden_size,
        "pooling_mode_cls_token": task.pooling == "cls",
        "pooling_mode_mean_tokens": task.pooling == "mean",
    }
    (folder / "1_Pooling").mkdir()
    for name, content in (
        ("modules.json", modules),
        ("sentence_bert_config.json", {"max_seq_length": task.max_tokens}),
        ("1_Pooling/config.json", pooling),
    ):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def open_model(task: Task) -> Model:
    """Start the engine."""
    os.environ["DO_NOT_TRACK"] = "1"  # else it reports its use to its makers
    import torch
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    torch.set_num_threads(task.n_threads)
    device, _, index = task.device.partition(":")
    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(
            model_name_or_path=task.folder,
            engine="torch",
            device=device,
            device_id=[int(index)] if index else [],
            dtype=task.options["dtype"],
            model_warmup=False,  # the benchmark's own warm-up is not of 32 texts of 512 tokens
        )
    )
    for replica in engine._model_replicas:  # there is no argument for it
        replica.normalize_embeddings = task.is_normalized
    return Infinity(engine, task)


class Infinity(Model):
    """An engine on an event loop of its own."""

    batching = "its own: batches of 32, sorted by length among the 128 that wait longest"
    n_workers = 32

    def __init__(self, engine: Any, task: Task) -> None:
        self._engine = engine
        self.versions = {package: version(package) for package in ("infinity-emb", "sentence-transformers", "torch")}
        self.provider = f"{task.device}, torch, {task.options['dtype']}"
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(engine.astart(), self._loop).result()

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Embed texts, in one request."""
        vectors, _ = asyncio.run_coroutine_threadsafe(self._engine.embed(list(texts)), self._loop).result()
        return np.stack(vectors)


if __name__ == "__main__":
    run_adapter(open_model, prepare)
