"""A plan of TensorRT for RTX opened as a device's session: kernels for the GPU are compiled here, and kept.

How its runtime is asked to compile, for memory and vectors that stay as they are:

- A bucket's shape is its own for good, so its kernels are specialized for it at the first run (`EAGER`), and the
  library captures a CUDA graph of them by itself (`WHOLE_GRAPH_CAPTURE`): it knows when they are final, and we do not.
- Other batches have shapes without number. Kernels for each would be compiled for ever, and a sentence's vector would
  change when they are ready (`LAZY`). So the kernels for any shape are used, and nothing is captured (`NONE`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mexma_runtime.backends.gpu.device import Device
from mexma_runtime.backends.gpu.plans.session import PlanSession
from mexma_runtime.backends.tensorrt_library import TENSORRT_RTX, view
from mexma_runtime.bundle.plans import Profile
from mexma_runtime.bundle.whole_files import write_whole
from mexma_runtime.errors import FileError

if TYPE_CHECKING:
    import tensorrt_rtx as rtx


class RtxSession(PlanSession):
    """A plan, opened. Its kernels are taken from the file `kernels`, as far as they are for this GPU and driver."""

    captures = True

    def __init__(self, path: Path, device: Device, stream: int, profiles: Sequence[Profile], *, kernels: Path) -> None:
        super().__init__(TENSORRT_RTX, path, device, stream, profiles)
        self._kernels = kernels
        self._cache: rtx.IRuntimeCache = self._rtx_engine.create_runtime_config().create_runtime_cache()
        with suppress(OSError):
            # False: it is of another GPU, driver or version, and is replaced.
            self._cache.deserialize(kernels.read_bytes())

    def keep_kernels(self) -> None:
        """Write what was compiled to the file; a bundle that cannot be written to is opened more slowly each time."""
        with suppress(FileError):
            write_whole(self._kernels, view(self._cache.serialize()))

    @property
    def _rtx_engine(self) -> rtx.ICudaEngine:
        return self._engine

    def _create_context(self, *, is_fixed: bool) -> rtx.IExecutionContext | None:
        if TYPE_CHECKING:
            import tensorrt_rtx as rtx
        else:
            rtx = TENSORRT_RTX.load()
        graphs, kernels = rtx.CudaGraphStrategy, rtx.DynamicShapesKernelSpecializationStrategy
        config = self._rtx_engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(rtx.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.set_runtime_cache(self._cache)
        config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if is_fixed else graphs.DISABLED
        config.dynamic_shapes_kernel_specialization_strategy = kernels.EAGER if is_fixed else kernels.NONE
        return self._rtx_engine.create_execution_context(config)
