from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mexma_runtime import Encoder
from mexma_runtime.backends.cpu import host

BLOCK_BYTES = 60_000
"""glibc takes a block of so few from its heap, and maps no pages for it alone."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the backend takes for time.monotonic: `now_s`."""
    clock = SimpleNamespace(now_s=1000.0)
    monkeypatch.setattr(host, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    return clock


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_what_freed_memory_glibc_keeps_is_given_back(
    backend: str, bundle_folder: Path, clock: SimpleNamespace, resident_bytes: Callable[[], int]
) -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    with Encoder.load(bundle_folder, backend=backend, engine="portable.fp32", n_threads=1) as encoder:
        encoder.encode("sand")
        blocks = [libc.malloc(BLOCK_BYTES) for _ in range(1000)]
        for block in blocks:
            ctypes.memset(block, 1, BLOCK_BYTES)
        for block in blocks[:-1]:  # the last one, at the top of the heap, holds the others there
            libc.free(ctypes.c_void_p(block))
        kept = resident_bytes()

        clock.now_s += host.TRIM_INTERVAL_S - 1
        encoder.encode("sand")
        before = resident_bytes()
        clock.now_s += 1
        encoder.encode("sand")

        assert kept - before < 100 * BLOCK_BYTES
        assert kept - resident_bytes() > 900 * BLOCK_BYTES
        libc.free(ctypes.c_void_p(blocks[-1]))


def test_where_giving_back_takes_long_it_is_rare(
    bundle_folder: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed = []

    def trim_slowly() -> None:
        trimmed.append(clock.now_s)
        clock.now_s += 0.5

    monkeypatch.setattr(host, "_trim_heap", trim_slowly)
    with Encoder.load(bundle_folder, backend="onnxruntime", engine="portable.fp32", n_threads=1) as encoder:
        for _ in range(200):
            encoder.encode("sand")
            clock.now_s += 5
    assert trimmed == [1000.0, 1500.5]
