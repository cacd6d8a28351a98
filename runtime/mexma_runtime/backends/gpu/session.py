"""What runs an engine on a device: an open session of a library, and what is bound to its inputs and its output."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class Binding(Protocol):
    """Memory of the device that a run reads and writes; it stays as bound, for any number of runs."""

    def bind_input(self, name: str, dtype: type[np.generic], shape: tuple[int, ...], pointer: int) -> None:
        """Read the input `name` from `pointer`."""

    def bind_output(self, name: str, dtype: type[np.generic], shape: tuple[int, ...], pointer: int) -> None:
        """Write the output `name` to `pointer`."""


class Session(Protocol):
    """An open engine. One thread at a time uses it."""

    library: str
    """As a user knows it: `onnxruntime`, `tensorrt` or `tensorrt-rtx`."""
    providers: tuple[str, ...]
    """What computes, as the library names it."""
    captures: bool
    """Whether the library captures the runs of fixed bindings as CUDA graphs by itself."""

    def holds(self, n_sentences: int, longest: int) -> bool:
        """Whether it can run a batch of so many sentences, the longest of so many tokens, at all."""

    def binding(self, *, is_fixed: bool) -> Any:
        """A new Binding; `is_fixed`: what is bound to it first stays."""

    def run(self, binding: Any) -> None:
        """Queue a run with `binding`, which is one of this session's; it returns before it is done."""
