"""Sentences end to end in one row for transformers' models in PyTorch: no padding is computed.

Run in fp16 on one H200. Tests run all but the kernel, with attention a sentence at a time instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AttentionInterface

from mexma_benchmarks.adapters.protocol import NotOfferedError

Ids = NDArray[np.int64]
Tensor = torch.Tensor
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int], Tensor]
"""Attention within sentences, called as varlen_attn: query, key and value `(tokens, heads, head size)`; where sentences
start in queries and in keys, int32 `(n + 1,)` with the end; the longest of either. Returns the query's shape."""

ATTENTION = "mexma_unpadded"
"""Its name among transformers' attention functions."""


def place(array: NDArray[Any], device: torch.device) -> Tensor:
    """`array` on the device; on a GPU at some time before what is queued after it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def varlen_kernel(device: torch.device, dtype: torch.dtype) -> Kernel:
    """PyTorch's own kernel, which is FlashAttention's; NotOfferedError where it cannot run."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        raise NotOfferedError(
            "unpadded attention in PyTorch (varlen_attn) takes fp16 and bf16 on a CUDA GPU: "
            f"asked for {str(dtype).removeprefix('torch.')} on {device}"
        )
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        raise NotOfferedError(f"PyTorch {torch.__version__} has no torch.nn.attention.varlen, 2.10 has") from None
    return varlen_attn  # type: ignore[return-value]  # not the pair that it returns when asked for more


def register_attention(kernel: Kernel) -> str:
    """Make `kernel` one of transformers' attention functions, in place of an earlier one; returns its name."""

    def attend(
        module: object, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **inputs: Any
    ) -> tuple[Tensor, None]:
        # (1, heads, tokens, head size): a view of what the kernel takes. Its scale is the model's, 1 / sqrt(head size).
        query, key, value = (heads[0].transpose(0, 1) for heads in (query, key, value))
        starts, longest = inputs["cu_seq_lens_q"], inputs["max_length_q"]
        return kernel(query, key, value, starts, starts, longest, longest)[None], None

    AttentionInterface.register(ATTENTION, attend)  # transformers makes no mask for a function that it does not know
    return ATTENTION


def starts_of(lengths: NDArray[np.int64]) -> NDArray[np.int32]:
    """int32 `(n + 1,)`: where sentences start that lie end to end, with the end."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


class Unpadded:
    """The layout: one row of all tokens."""

    def __init__(self, config: Any, device: torch.device) -> None:
        if config.model_type not in ("bert", "xlm-roberta"):
            raise ValueError(
                f"expected model_type bert or xlm-roberta, whose positions are known, got {config.model_type}"
            )
        self._padding_id = config.pad_token_id if config.model_type == "xlm-roberta" else None
        self._device = device

    def inputs(self, sentences: Sequence[Sequence[int]]) -> dict[str, Any]:
        """What the model takes: ids and positions, int64 `(1, tokens)`, and where sentences start, int32 `(n + 1,)`."""
        lengths = np.array([len(ids) for ids in sentences])
        ids = np.concatenate(sentences).astype(np.int64)
        return {
            "input_ids": place(ids[None], self._device),
            "position_ids": place(self.positions(ids, lengths)[None], self._device),
            "cu_seq_lens_q": place(starts_of(lengths), self._device),
            "max_length_q": int(lengths.max()),
        }

    def positions(self, ids: Ids, lengths: NDArray[np.int64]) -> Ids:
        """int64 `(total,)`, as transformers counts them within each sentence."""
        starts = starts_of(lengths)[:-1]
        if self._padding_id is None:
            return np.arange(len(ids)) - np.repeat(starts, lengths)
        is_counted = (ids != self._padding_id).astype(np.int64)  # a text may contain <pad>
        so_far = np.cumsum(is_counted)
        before = (so_far - is_counted)[starts]
        positions: Ids = (so_far - np.repeat(before, lengths)) * is_counted + self._padding_id
        return positions

    def pool(self, tokens: Tensor, inputs: Mapping[str, Any], pooling: str) -> Tensor:
        """float32 `(n, dim)` of the last layer's `tokens` `(1, tokens, dim)`."""
        starts = inputs["cu_seq_lens_q"]
        if pooling == "cls":
            return tokens[0].index_select(0, starts[:-1]).float()
        # unsafe: its checks would wait for the GPU
        return torch.segment_reduce(tokens[0].float(), "mean", lengths=starts.diff(), unsafe=True)
