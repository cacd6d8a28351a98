"""What a plan is built for: this machine's GPU, by TensorRT, or some compute capabilities, by TensorRT for RTX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from mexma_runtime.backends import plan_platform
from mexma_runtime.backends.tensorrt_library import TENSORRT, TENSORRT_RTX, Library, view
from mexma_runtime.bundle.plans import HardwareCompatibility
from mexma_runtime.errors import MexmaError

if TYPE_CHECKING:
    import tensorrt as trt
    import tensorrt_rtx as rtx


class Target(Protocol):
    """What a plan is built for, and by which library."""

    library: Library

    def select(self) -> None:
        """Make the GPU that is measured, if one is, the calling thread's."""

    def configure(self, config: trt.IBuilderConfig) -> None:
        """Say what is built for."""

    def finish(self, config: trt.IBuilderConfig) -> None:
        """Keep what the library has learned."""

    def inspect(self, plan: memoryview, logger: trt.ILogger) -> str | None:
        """The inspector's JSON, of a plan opened as whoever runs it will; None where the library cannot open it."""


class ThisGpu:
    """One of this machine's, by TensorRT, which measures kernels on it."""

    library = TENSORRT

    def __init__(self, device: str, *, compatibility: HardwareCompatibility, timing_cache: bytes) -> None:
        """`timing_cache`: what was measured by an earlier build on the same GPU, or empty; `finish` replaces it."""
        self._device, self._compatibility, self.timing_cache = device, compatibility, timing_cache

    def select(self) -> None:
        """CUDA's current device is a thread's own."""
        plan_platform(self._device)

    def configure(self, config: trt.IBuilderConfig) -> None:
        """Compatibility and timing cache."""
        if TYPE_CHECKING:
            import tensorrt as trt
        else:
            trt = self.library.load()
        config.hardware_compatibility_level = {
            HardwareCompatibility.NONE: trt.HardwareCompatibilityLevel.NONE,
            HardwareCompatibility.SAME_CAPABILITY: trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
            HardwareCompatibility.AMPERE_PLUS: trt.HardwareCompatibilityLevel.AMPERE_PLUS,
        }[self._compatibility]
        cache = config.create_timing_cache(self.timing_cache)
        if not config.set_timing_cache(cache, ignore_mismatch=False):  # of another GPU, or damaged: measured anew
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)

    def finish(self, config: trt.IBuilderConfig) -> None:
        """Keep the timing cache."""
        self.timing_cache = bytes(view(config.get_timing_cache().serialize()))

    def inspect(self, plan: memoryview, logger: trt.ILogger) -> str | None:
        """Which kernels run, and what was fused into each."""
        if TYPE_CHECKING:
            import tensorrt as trt
        else:
            trt = self.library.load()
        engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
        if engine is None:
            return None
        return engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)


class RtxGpus:
    """GPUs of some compute capabilities, by TensorRT for RTX, which compiles without one and finishes kernels on them.

    It has no timing cache, and opens no plan where there is no GPU: nothing is inspected.
    """

    library = TENSORRT_RTX

    def __init__(self, capabilities: Sequence[str]) -> None:
        self._capabilities = capabilities

    def select(self) -> None:
        """None is measured."""

    def configure(self, config: rtx.IBuilderConfig) -> None:
        """Set the capabilities."""
        if TYPE_CHECKING:
            import tensorrt_rtx as rtx
        else:
            rtx = self.library.load()
        config.num_compute_capabilities = len(self._capabilities)
        for index, capability in enumerate(self._capabilities):
            chosen = getattr(rtx.ComputeCapability, f"SM{capability.replace('.', '')}", None)
            if chosen is None or not config.set_compute_capability(chosen, index):
                raise MexmaError(f"{self.library.title} {rtx.__version__} has no compute capability {capability}")

    def finish(self, config: rtx.IBuilderConfig) -> None:
        """Nothing was learned."""

    def inspect(self, plan: memoryview, logger: rtx.ILogger) -> None:
        """None."""
