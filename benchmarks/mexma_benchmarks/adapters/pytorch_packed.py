"""PyTorch at its best: the encoder as one writes it by hand who wants nothing but speed, on the checkpoint's weights.

Tokens end to end, varlen_attn, one function for a layer that torch.compile compiles once for all layers and shapes, and
GELU in the product before it (cuBLASLt's epilogue). That is the tanh form of GELU on a GPU, where transformers computes
the erf form; on a CPU PyTorch has erf there. With `graph_length`, one sentence of so many tokens replays a CUDA graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch.nn.functional import embedding, layer_norm, linear, normalize

from mexma_benchmarks.adapters.protocol import Ids, Lengths, Model, NotOfferedError, Task, Vectors, run_adapter
from mexma_benchmarks.adapters.pytorch import DTYPES
from mexma_benchmarks.adapters.texts import load_tokenizer, tokenize
from mexma_benchmarks.adapters.unpadded import Kernel, Tensor, Unpadded, place, starts_of, varlen_kernel

MAX_BATCH_TOKENS = 65_536
N_GRAPH_WARMUPS = 3
"""Runs before a graph is captured, as PyTorch asks for."""

Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Of a function that reads and writes fixed memory: one that does the same again, and returns the same tensor."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """`Task.options`."""

    dtype: str = "fp16"
    """Of weights and computation: a key of pytorch.DTYPES."""
    compile: bool = True
    graph_length: int | None = None
    """Tokens of the one sentence whose graph is captured; the layer is compiled for it alone then."""


class LayerWeights(NamedTuple):
    """One layer's; matrices are `(out, in)`."""

    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    out_bias: Tensor
    attention_norm: Tensor
    attention_norm_bias: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor
    norm: Tensor
    norm_bias: Tensor


def layer_weights(layer: Any) -> LayerWeights:
    """The weights of a layer of transformers, with those of queries, keys and values joined."""
    attention, after = layer.attention.self, layer.attention.output
    parts = (attention.query, attention.key, attention.value)
    up, down = layer.intermediate.dense, layer.output.dense
    return LayerWeights(
        torch.cat([part.weight for part in parts]),
        torch.cat([part.bias for part in parts]),
        *(after.dense.weight, after.dense.bias, after.LayerNorm.weight, after.LayerNorm.bias),
        *(up.weight, up.bias, down.weight, down.bias, layer.output.LayerNorm.weight, layer.output.LayerNorm.bias),
    )


def compute_layer(
    x: Tensor, starts: Tensor, longest: int, weights: LayerWeights, *, n_heads: int, epsilon: float, kernel: Kernel
) -> Tensor:
    """`(tokens, dim)` in and out."""
    w, dim = weights, x.shape[1]
    query, key, value = linear(x, w.qkv, w.qkv_bias).view(-1, 3, n_heads, dim // n_heads).unbind(1)
    attended = kernel(query, key, value, starts, starts, longest, longest).reshape(-1, dim)
    x = layer_norm(x + linear(attended, w.out, w.out_bias), (dim,), w.attention_norm, w.attention_norm_bias, epsilon)
    activated = torch._addmm_activation(w.up_bias, x, w.up.t(), use_gelu=True)
    return layer_norm(x + linear(activated, w.down, w.down_bias), (dim,), w.norm, w.norm_bias, epsilon)


def cuda_graph(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """`call` captured as a CUDA graph."""
    cuda: Any = torch.cuda
    stream = cuda.Stream()
    stream.wait_stream(cuda.current_stream())
    with cuda.stream(stream):
        for _ in range(N_GRAPH_WARMUPS):
            call()
    cuda.current_stream().wait_stream(stream)
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        output = call()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def open_model(task: Task, kernel: Kernel | None = None, capture: Capture | None = None) -> PackedPyTorch:
    """Load the checkpoint for `Options(**task.options)`; NotOfferedError where PyTorch lacks what it takes.

    `kernel` takes the place of varlen_attn, and `capture` that of `cuda_graph`.
    """
    options, device = Options(**task.options), torch.device(task.device)
    kernel = kernel or varlen_kernel(device, DTYPES[options.dtype])
    if not hasattr(torch, "_addmm_activation"):
        raise NotOfferedError(f"PyTorch {torch.__version__} has no product with GELU in it (torch._addmm_activation)")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError(f"asked for {task.device}: PyTorch {torch.__version__} finds no CUDA GPU here")
        torch.cuda.set_device(device)
    elif options.graph_length is not None and capture is None:
        raise NotOfferedError(f"CUDA graphs are for CUDA GPUs: asked for {task.device}")
    torch.set_num_threads(task.n_threads)
    model: Any = transformers.AutoModel.from_pretrained(
        task.checkpoint, dtype=DTYPES[options.dtype], add_pooling_layer=False, local_files_only=True
    )
    if model.config.hidden_act != "gelu":
        raise ValueError(f"expected hidden_act gelu, got {model.config.hidden_act}")
    return PackedPyTorch(model.eval().to(device), device, task, options, kernel, capture or cuda_graph)


class PackedPyTorch(Model):
    """An encoder of XLM-R's and BERT's family."""

    batching = f"up to {MAX_BATCH_TOKENS:,} tokens end to end, in order of arrival"

    def __init__(
        self, model: Any, device: torch.device, task: Task, options: Options, kernel: Kernel, capture: Capture
    ) -> None:
        self._task, self._device = task, device
        self._tokenizer = load_tokenizer(task)
        self._layout = Unpadded(model.config, device)
        self._graph_length = options.graph_length
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        self.provider = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        compute = functools.partial(
            compute_layer,
            n_heads=model.config.num_attention_heads,
            epsilon=model.config.layer_norm_eps,
            kernel=kernel,
        )
        with torch.inference_mode():
            table = model.embeddings
            self._words = table.word_embeddings.weight
            self._positions = table.position_embeddings.weight + table.token_type_embeddings.weight[0]
            self._norm = table.LayerNorm
            self._layers = [layer_weights(layer) for layer in model.encoder.layer]
            if options.graph_length is not None:
                static = torch.compile(compute, dynamic=False) if options.compile else compute
                self._capture(static, options.graph_length, capture)
        # One that has a graph is for that: what else it is given runs as it is.
        is_compiled = options.compile and options.graph_length is None
        self._compute = torch.compile(compute, dynamic=True) if is_compiled else compute

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Embed texts: tokenized at once, then in batches."""
        return self._encode(tokenize(self._tokenizer, texts))

    def encode_ids(self, sentences: Sequence[Sequence[int]]) -> Vectors:
        """Embed one batch of token ids; with `graph_length`, one sentence of that length."""
        if self._graph_length is None:
            return self._encode(sentences)
        if len(sentences) != 1 or len(sentences[0]) != self._graph_length:
            raise NotOfferedError(f"its graph is of one sentence of {self._graph_length} tokens")
        return self._replayed(np.asarray(sentences[0], dtype=np.int64))

    @torch.inference_mode()
    def encode_ragged(self, ids: Ids, lengths: Lengths) -> Vectors:
        """Embed token ids: all batches are queued, then the vectors are fetched at once."""
        if self._graph_length is not None:
            raise NotOfferedError(f"its graph is of one sentence of {self._graph_length} tokens")
        return self._embed_all(ids, lengths)

    @torch.inference_mode()
    def _encode(self, sentences: Sequence[Sequence[int]]) -> Vectors:
        return self._embed_all(np.concatenate(sentences), np.array([len(ids) for ids in sentences]))

    def _embed_all(self, ids: NDArray[Any], lengths: Lengths) -> Vectors:
        ends, batches, row, start = np.cumsum(lengths), [], 0, 0
        while row < len(lengths):
            stop = max(row + 1, int(np.searchsorted(ends, start + MAX_BATCH_TOKENS, side="right")))
            end = int(ends[stop - 1])
            batches.append(self._embed_batch(ids[start:end].astype(np.int64), lengths[row:stop]))
            row, start = stop, end
        vectors: Vectors = torch.cat(batches).cpu().numpy()
        return vectors

    def _embed_batch(self, ids: NDArray[np.int64], lengths: Lengths) -> Tensor:
        """On the device, and perhaps not computed yet."""
        inputs = place(np.stack([ids, self._layout.positions(ids, lengths)]), self._device)
        starts = place(starts_of(lengths), self._device)
        return self._embed(self._compute, inputs, starts, int(lengths.max()))

    def _embed(self, compute: Callable[..., Tensor], inputs: Tensor, starts: Tensor, longest: int) -> Tensor:
        """float32 `(n, dim)` of ids and positions, `inputs` `(2, tokens)`."""
        x = embedding(inputs[0], self._words) + embedding(inputs[1], self._positions)
        x = layer_norm(x, x.shape[1:], self._norm.weight, self._norm.bias, self._norm.eps)
        for weights in self._layers:
            x = compute(x, starts, longest, weights)
        vectors = self._layout.pool(x[None], {"cu_seq_lens_q": starts}, self._task.pooling)
        return normalize(vectors, dim=1) if self._task.is_normalized else vectors

    def _capture(self, compute: Callable[..., Tensor], length: int, capture: Capture) -> None:
        """The graph, and the memory that it reads: pinned on the host, and on the device."""
        ones = np.ones((2, length), dtype=np.int64)
        self._host, self._inputs = torch.from_numpy(ones), place(ones, self._device).clone()
        if self._device.type == "cuda":
            self._host = self._host.pin_memory()
        self._lengths = np.array([length])
        starts = place(starts_of(self._lengths), self._device)
        self._replay = capture(lambda: self._embed(compute, self._inputs, starts, length))
        self._vector = torch.empty(self._replay().shape, pin_memory=self._device.type == "cuda")

    @torch.inference_mode()
    def _replayed(self, ids: NDArray[np.int64]) -> Vectors:
        host = self._host.numpy()
        host[0], host[1] = ids, self._layout.positions(ids, self._lengths)
        self._inputs.copy_(self._host, non_blocking=True)
        self._vector.copy_(self._replay(), non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        vectors: Vectors = self._vector.numpy().copy()
        return vectors


if __name__ == "__main__":
    run_adapter(open_model)
