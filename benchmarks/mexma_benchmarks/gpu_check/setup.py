"""What the steps share: the checkpoint, its bundle, our encoder, PyTorch's processes. Each is made when first used."""

from __future__ import annotations

import re
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from mexma_benchmarks.gpu_check.pytorch import PyTorchProcess, task_for
from mexma_benchmarks.gpu_check.sizes import Sizes
from mexma_export.checkpoint.checkpoint import Checkpoint, load_checkpoint
from mexma_export.checkpoint.sources import Source, resolve_source
from mexma_runtime import Encoder
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.hardware import detect_hardware

SDPA, UNPADDED, COMPILED = "PyTorch", "PyTorch unpadded", "PyTorch compiled"
BASELINES: dict[str, dict[str, bool | str]] = {SDPA: {}, UNPADDED: {"unpadded": True}, COMPILED: {"compile": True}}
"""Ways to run PyTorch -> options of its adapter. The one that may take minutes to get warm is last."""


class Setup:
    """One run; leaving a `with` ends what was started."""

    def __init__(self, *, device: str, model: str, out: Path, sizes: Sizes) -> None:
        self.device, self.model, self.out, self.sizes = device, model, out, sizes
        self.is_cuda = device.partition(":")[0] == "cuda"
        self.precision = "fp16" if self.is_cuda else "fp32"
        self.engine = "packed.fp16" if self.is_cuda else "fused.fp32"
        """Of ours, in all that is timed."""
        self.baselines = tuple(BASELINES) if self.is_cuda else (SDPA,)
        self.n_threads = detect_hardware().n_usable_cores
        self._stack = ExitStack()
        self._running: dict[str, PyTorchProcess] = {}

    @cached_property
    def source(self) -> Source:
        """A stand-in is written where it is not there yet."""
        return resolve_source(self.model)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint of `source`, loaded."""
        return load_checkpoint(self.source)

    @property
    def folder(self) -> Path:
        """The folder of the bundle."""
        return self.out / "bundles" / re.sub(r"[^\w.]+", "-", self.model)

    @cached_property
    def bundle(self) -> Bundle:
        """What the step of the export has written."""
        return Bundle.open(self.folder)

    @cached_property
    def encoder(self) -> Encoder:
        """Our encoder on `device`."""
        return self._stack.enter_context(Encoder.from_bundle(self.bundle, engine=self.engine, device=self.device))

    def pytorch(self, name: str) -> PyTorchProcess:
        """PyTorch in one of the ways of BASELINES, in the precision of ours."""
        if name not in self._running:
            options = BASELINES[name] | {"dtype": self.precision}
            manifest = self.bundle.manifest
            task = task_for(self.source, manifest, device=self.device, n_threads=self.n_threads, options=options)
            self._running[name] = self._stack.enter_context(PyTorchProcess(task))
        return self._running[name]

    def end_pytorch(self) -> None:
        """End the processes, so that the device's memory is ours alone."""
        for process in self._running.values():
            process.close()
        self._running.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
