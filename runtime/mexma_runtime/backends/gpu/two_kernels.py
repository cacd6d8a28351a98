"""One engine in two sessions on one stream, one an attention kernel: a run takes the one that is faster for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import numpy as np

from mexma_runtime.backends.gpu.session import Session
from mexma_runtime.backends.options import Attention

TOKENS = "input_ids"
"""The input that has as many rows as there are tokens; the output has as many as there are sentences."""

Memory: TypeAlias = tuple[type[np.generic], tuple[int, ...], int]
"""Type, shape and address of what is bound."""


class TwoKernelBinding:
    """What is bound for a run, and each session's own binding of it, made when that session first runs it."""

    def __init__(self, *, is_fixed: bool) -> None:
        self.is_fixed = is_fixed
        self.inputs: dict[str, Memory] = {}
        self.outputs: dict[str, Memory] = {}
        self.own: dict[Attention, Any] = {}

    def bind_input(self, name: str, dtype: type[np.generic], shape: tuple[int, ...], pointer: int) -> None:
        """Read the input `name` from `pointer`."""
        self.inputs[name] = dtype, shape, pointer

    def bind_output(self, name: str, dtype: type[np.generic], shape: tuple[int, ...], pointer: int) -> None:
        """Write the output `name` to `pointer`."""
        self.outputs[name] = dtype, shape, pointer


class TwoKernelSession:
    """The two sessions of a packed engine as one. What a graph has captured is one of them, by the bucket's shape."""

    captures = False

    def __init__(
        self,
        efficient: Session,
        flash: Session,
        *,
        flash_above_mean_tokens: int,
        flash_bytes: int,
        shared_bytes: int,
    ) -> None:
        """`flash_bytes`: of the device's memory, that `flash` took when it was opened. `shared_bytes`: of the weights
        that both were given.
        """
        self._sessions = {Attention.EFFICIENT: efficient, Attention.FLASH: flash}
        self._only: Attention | None = None
        self.library, self.providers = efficient.library, efficient.providers
        self.flash_above_mean_tokens = flash_above_mean_tokens
        self.flash_bytes = flash_bytes
        """Of the device's memory, that flash takes beside efficient; for its largest batch, too, once that has run."""
        self._shared_bytes = shared_bytes

    def __str__(self) -> str:
        return (
            f"efficient for batches of up to {self.flash_above_mean_tokens} tokens a sentence on average, flash above; "
            f"flash took {self.flash_bytes / 1e6:,.0f} MB more, beside {self._shared_bytes / 1e6:,.0f} MB of weights "
            "for both"
        )

    def holds(self, n_sentences: int, longest: int) -> bool:
        """Whether both can run such a batch."""
        return all(session.holds(n_sentences, longest) for session in self._sessions.values())

    def binding(self, *, is_fixed: bool) -> TwoKernelBinding:
        """A new binding, for either."""
        return TwoKernelBinding(is_fixed=is_fixed)

    def run(self, binding: TwoKernelBinding) -> None:
        """Queue a run by the session that is for its shape."""
        kernel = self._only or self._kernel_for(binding)
        session = self._sessions[kernel]
        own = binding.own[kernel] = binding.own.get(kernel) or session.binding(is_fixed=binding.is_fixed)
        for name, memory in binding.inputs.items():
            own.bind_input(name, *memory)
        for name, memory in binding.outputs.items():
            own.bind_output(name, *memory)
        session.run(own)

    @contextmanager
    def only(self, kernel: Attention) -> Iterator[None]:
        """Within the block, run everything by `kernel`; for checks and measurements."""
        self._only = kernel
        try:
            yield
        finally:
            self._only = None

    def _kernel_for(self, binding: TwoKernelBinding) -> Attention:
        n_tokens = binding.inputs[TOKENS][1][0]
        ((_, (n_sentences, _), _),) = binding.outputs.values()
        is_long = n_tokens > self.flash_above_mean_tokens * n_sentences
        return Attention.FLASH if is_long else Attention.EFFICIENT


def each_kernel(session: Session) -> list[AbstractContextManager[None]]:
    """For each kernel that `session` has, a block within which it runs that alone; others have one."""
    if isinstance(session, TwoKernelSession):
        return [session.only(kernel) for kernel in (Attention.EFFICIENT, Attention.FLASH)]
    return [nullcontext()]
