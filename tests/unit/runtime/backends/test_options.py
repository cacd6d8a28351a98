from __future__ import annotations

import pytest

from mexma_runtime.backends.options import Attention, CpuOptions, GpuOptions, Graphs, resolve_backend_options
from mexma_runtime.errors import UsageError
from mexma_runtime.hardware import most_threads


def test_each_kind_of_device_has_options_of_its_own() -> None:
    assert resolve_backend_options("cpu", "cpu", n_threads=2, spinning=False) == CpuOptions(n_threads=2, spinning=False)
    assert resolve_backend_options("cuda", "cuda:1", graphs="never", attention="flash") == GpuOptions(
        graphs=Graphs.NEVER, attention=Attention.FLASH
    )
    assert resolve_backend_options("cuda", "cuda") == GpuOptions()


@pytest.mark.parametrize(
    ("kind", "asked", "said"),
    [
        ("cpu", {"graphs": "never"}, "graphs=never is for a GPU, and device='cpu' was asked for: leave it out"),
        ("cpu", {"memory_limit": 1}, "memory_limit=1 is for a GPU"),
        ("cpu", {"memory_limit": 1, "attention": "flash", "graphs": "never"}, "^graphs=never is for a GPU"),
        ("cuda", {"n_threads": 1}, "n_threads=1 is for CPUs, and device='cuda' was asked for: leave it out"),
        ("cuda", {"attention": "slow"}, "attention: expected one of efficient, flash, auto, got 'slow'"),
        ("cpu", {"n_threads": 0}, f"n_threads: expected 1 to {most_threads()}, got 0"),
        ("cpu", {"n_threads": 1 << 31}, "n_threads: expected 1 to .*, got 2147483648"),
    ],
)
def test_what_is_for_the_other_or_means_nothing_is_refused(kind: str, asked: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve_backend_options(kind, kind, **asked)  # type: ignore[arg-type]
