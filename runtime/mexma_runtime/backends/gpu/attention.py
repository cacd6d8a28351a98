"""Which of onnxruntime's attention kernels a packed engine runs, by what was asked for and what there is room for."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeAlias

from mexma_runtime.backends.gpu.backend import DeviceBackend
from mexma_runtime.backends.gpu.cuda_checks import Gpu
from mexma_runtime.backends.gpu.device import Device
from mexma_runtime.backends.gpu.session import Session
from mexma_runtime.backends.gpu.shared_weights import SharedWeights
from mexma_runtime.backends.gpu.two_kernels import TwoKernelSession
from mexma_runtime.backends.options import Attention
from mexma_runtime.errors import DeviceMemoryError, UsageError
from mexma_runtime.types import Precision

FLASH_CAPABILITY = (8, 0)
"""Of compute: what onnxruntime's FlashAttention needs."""

OpenSession: TypeAlias = Callable[[Attention, int | None, SharedWeights | None], Session]
"""Opens a session with that kernel, which takes at most so many bytes of the device's memory (None: no limit), and
reads those weights where they are (None: has all of its own)."""
Assemble: TypeAlias = Callable[[Session, str], DeviceBackend]
"""Puts a backend together from a session, and what to say of its attention."""


def why_no_flash(precision: Precision, gpu: Gpu) -> str | None:
    """What keeps an engine of `precision` from running FlashAttention on `gpu`; None: nothing."""
    if precision is Precision.FP32:
        return "fp32 has no flash kernel"
    if gpu.capability < FLASH_CAPABILITY:
        found, needed = (f"{major}.{minor}" for major, minor in (gpu.capability, FLASH_CAPABILITY))
        return f"flash needs compute capability {needed}, and {gpu.name} has {found}"
    return None


def open_with(
    wanted: Attention,
    open_session: OpenSession,
    share_weights: Callable[[], SharedWeights],
    assemble: Assemble,
    device: Device,
    *,
    no_flash: str | None,
    memory_limit: int | None,
    flash_above_mean_tokens: int,
    max_tokens: int,
) -> DeviceBackend:
    """A backend with the kernel that is `wanted`, or with both.

    For both, efficient alone is taken where `no_flash` says why, or no sentence, of `max_tokens` at most, is long
    enough for flash. Both read the same weights, and each may take half of what these leave of `memory_limit`. Where
    either finds no room, for the rest of its weights or for the largest batch, efficient is opened anew, alone, and may
    take all of it. UsageError where flash alone is wanted, and there is none.
    """
    if wanted is Attention.AUTO and no_flash is None and flash_above_mean_tokens >= max_tokens:
        no_flash = f"it is the faster up to {flash_above_mean_tokens} tokens a sentence, and none has more"
    if wanted is Attention.AUTO and no_flash is None:
        try:
            return _open_both(open_session, share_weights(), assemble, device, memory_limit, flash_above_mean_tokens)
        except DeviceMemoryError as error:
            no_flash = f"there is no room for flash beside it ({error})"
        gc.collect()  # a staging buffer and its last batch refer to each other, and to a session
    if wanted is Attention.FLASH and no_flash is not None:
        raise UsageError(f"attention=flash: {no_flash}: leave it out, or ask for auto")
    if wanted is not Attention.AUTO:
        return assemble(open_session(wanted, memory_limit, None), wanted.value)
    return assemble(open_session(Attention.EFFICIENT, memory_limit, None), f"efficient alone: {no_flash}")


def _open_both(
    open_session: OpenSession,
    weights: SharedWeights,
    assemble: Assemble,
    device: Device,
    memory_limit: int | None,
    flash_above_mean_tokens: int,
) -> DeviceBackend:
    """A function, so that nothing holds the memory of two that fail while one is made in their place."""
    half = None if memory_limit is None else (memory_limit - weights.n_bytes) // 2
    if half is not None and half <= 0:
        raise DeviceMemoryError(f"the weights take {weights.n_bytes} bytes, and memory_limit is {memory_limit}")
    efficient = open_session(Attention.EFFICIENT, half, weights)
    free_bytes = device.free_bytes()
    flash = open_session(Attention.FLASH, half, weights)
    both = TwoKernelSession(
        efficient,
        flash,
        flash_above_mean_tokens=flash_above_mean_tokens,
        flash_bytes=free_bytes - device.free_bytes(),
        shared_bytes=weights.n_bytes,
    )
    return assemble(both, "")
