"""PyTorch, the baseline: transformers' own model with SDPA attention, at its best without changing what it computes.

No pooler, which nobody reads; no mask where nothing is padded, so that SDPA takes its fastest kernel; sorted by tokens,
which pads less than sorting by characters as sentence-transformers does; a GPU's vectors fetched once, at the end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from mexma_benchmarks.adapters.protocol import Ids, Lengths, Model, Task, Vectors, run_adapter
from mexma_benchmarks.adapters.texts import BATCH_SIZE, cut_by_budget, length_sorted, load_tokenizer, pad, tokenize
from mexma_benchmarks.adapters.unpadded import Kernel, Unpadded, place, register_attention, varlen_kernel

MAX_BATCH_TOKENS = 16_384
"""Of a batch of ragged ids, padding included: enough to fill a large GPU, few enough to pad little."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What tells the baselines apart: `Task.options`."""

    dtype: str = "fp32"
    """Of weights and computation: a key of DTYPES."""
    is_sorted: bool = False
    """Batches of like lengths, the longest first; else in the order of arrival."""
    batch_size: int = BATCH_SIZE
    compile: bool = False
    """torch.compile of each layer, which compiles one for all of them, where a whole model of 24 takes minutes; for all
    shapes at once (`dynamic`), since texts bring new lengths all the time. In the default mode: "reduce-overhead" would
    capture a CUDA graph for each of them."""
    unpadded: bool = False
    """Sentences end to end: unpadded.py says where."""


class Layout(Protocol):
    """How sentences lie in a batch."""

    def inputs(self, sentences: Sequence[Sequence[int]]) -> dict[str, Any]:
        """What the model takes, on its device."""
        ...

    def pool(self, tokens: torch.Tensor, inputs: Mapping[str, Any], pooling: str) -> torch.Tensor:
        """float32 `(n, dim)` of the last layer's `tokens`."""
        ...


class SideBySide:
    """The layout: a row a sentence, padded to the longest."""

    def __init__(self, padding_id: int, device: torch.device) -> None:
        self._padding_id, self._device = padding_id, device

    def inputs(self, sentences: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Ids and mask, int64 `(n, longest)`."""
        batch = pad(sentences, self._padding_id)
        mask = None if batch.mask.all() else place(batch.mask, self._device)
        return {"input_ids": place(batch.ids, self._device), "attention_mask": mask}

    def pool(self, tokens: torch.Tensor, inputs: Mapping[str, Any], pooling: str) -> torch.Tensor:
        """float32 `(n, dim)` of `tokens` `(n, longest, dim)`."""
        mask = inputs["attention_mask"]
        if pooling == "cls":
            return tokens[:, 0].float()
        if mask is None:
            return tokens.mean(dim=1, dtype=torch.float32)
        weights = mask[:, :, None].to(tokens.dtype)
        pooled: torch.Tensor = (tokens * weights).sum(dim=1, dtype=torch.float32) / mask.sum(dim=1, keepdim=True)
        return pooled


def open_model(task: Task, kernel: Kernel | None = None) -> PyTorch:
    """Load the checkpoint for `Options(**task.options)`; `kernel` takes the place of PyTorch's unpadded attention.

    fp32 weights on a CPU stay mapped to the file.
    """
    options, device = Options(**task.options), torch.device(task.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"asked for {task.device}: PyTorch {torch.__version__} finds no CUDA GPU here")
    dtype, attention = DTYPES[options.dtype], "sdpa"
    if options.unpadded:
        attention = register_attention(kernel or varlen_kernel(device, dtype))
    torch.set_num_threads(task.n_threads)
    model: Any = transformers.AutoModel.from_pretrained(
        task.checkpoint, dtype=dtype, attn_implementation=attention, add_pooling_layer=False, local_files_only=True
    )
    return PyTorch(model.eval().to(device), device, task, options)


class PyTorch(Model):
    """A model of transformers."""

    def __init__(self, model: Any, device: torch.device, task: Task, options: Options) -> None:
        self._task, self._options, self._device = task, options, device
        self._tokenizer = load_tokenizer(task)
        self._layout: Layout = (
            Unpadded(model.config, device) if options.unpadded else SideBySide(model.config.pad_token_id, device)
        )
        if options.compile:
            for layer in model.encoder.layer:
                layer.compile(dynamic=True)
        self._model = model
        self._stages_s = {"tokenize": 0.0, "copy": 0.0, "compute": 0.0}
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        self.provider = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        order = "sorted by length" if options.is_sorted else "in order of arrival"
        self.batching = f"batches of {options.batch_size}, {order}" + ", unpadded" * options.unpadded

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Embed texts: tokenized at once, then in batches."""
        with self._counted("tokenize"):
            sentences = tokenize(self._tokenizer, texts)
        size = self._options.batch_size
        batches = length_sorted(sentences, size)
        if not self._options.is_sorted:
            batches = [np.arange(start, min(start + size, len(texts))) for start in range(0, len(texts), size)]
        return self._encode(sentences, batches)

    def encode_ids(self, sentences: Sequence[Sequence[int]]) -> Vectors:
        """Embed one batch of token ids."""
        return self._fetch([self._embed(sentences)])

    def encode_ragged(self, ids: Ids, lengths: Lengths) -> Vectors:
        """Embed token ids, in batches of like lengths of MAX_BATCH_TOKENS."""
        starts = [0, *np.cumsum(lengths).tolist()]
        sentences: Any = [ids[start:end] for start, end in pairwise(starts)]
        return self._encode(sentences, cut_by_budget(lengths, MAX_BATCH_TOKENS))

    def stages_s(self) -> dict[str, float]:
        """Seconds in the tokenizer, in bringing batches to the device and vectors back, and in the model."""
        return dict(self._stages_s)

    def _encode(self, sentences: Sequence[Sequence[int]], batches: Sequence[NDArray[np.intp]]) -> Vectors:
        """All batches are queued, then their vectors are fetched at once and put into the sentences' order."""
        in_turn = self._fetch([self._embed([sentences[row] for row in rows]) for rows in batches])
        vectors = np.empty_like(in_turn)
        vectors[np.concatenate(batches)] = in_turn
        return vectors

    def _embed(self, sentences: Sequence[Sequence[int]]) -> torch.Tensor:
        """One batch, on the device and perhaps not computed yet."""
        with self._counted("copy"):
            inputs = self._layout.inputs(sentences)
        with self._counted("compute"), torch.inference_mode():
            tokens = self._model(**inputs).last_hidden_state
            vectors = self._layout.pool(tokens, inputs, self._task.pooling)
            return torch.nn.functional.normalize(vectors, dim=1) if self._task.is_normalized else vectors

    def _fetch(self, batches: Sequence[torch.Tensor]) -> Vectors:
        if self._device.type == "cuda":
            with self._counted("compute"):
                torch.cuda.synchronize(self._device)
        with self._counted("copy"):
            vectors: Vectors = torch.cat(list(batches)).cpu().numpy()
            return vectors

    @contextmanager
    def _counted(self, stage: str) -> Iterator[None]:
        start_s = time.perf_counter()
        yield
        self._stages_s[stage] += time.perf_counter() - start_s


if __name__ == "__main__":
    run_adapter(open_model)
