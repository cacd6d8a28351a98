"""The builder of TensorRT and of TensorRT for RTX: a graph and profiles in, a plan out. Every call that builds is here.

Networks are strongly typed: types and Q/DQ are the graph's, so there are no precision flags and no calibrators, and
the same calls build on TensorRT 10 and 11 and on TensorRT for RTX.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mexma_runtime.backends import plan_platform
from mexma_runtime.backends.tensorrt_library import TENSORRT, TENSORRT_RTX, Library, Messages, make_logger, view
from mexma_runtime.bundle.plans import HardwareCompatibility, Profile
from mexma_runtime.errors import MexmaError
from mexma_runtime.process import NATIVE
from mexma_runtime.types import is_unicode

if TYPE_CHECKING:
    import tensorrt as trt
    import tensorrt_rtx as rtx

Report = Callable[[str, int, int], None]
"""Called with a phase of the build, steps of it that are done, and its steps."""


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
            chosen = getattr(rtx.ComputeCapability, f"SM{capability.replace('.', '')}")
            if not config.set_compute_capability(chosen, index):
                raise MexmaError(f"{self.library.title} refuses compute capability {capability}")

    def finish(self, config: rtx.IBuilderConfig) -> None:
        """Nothing was learned."""

    def inspect(self, plan: memoryview, logger: rtx.ILogger) -> None:
        """None."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a build gave."""

    plan: memoryview
    layers: str | None
    """Of Target.inspect."""


def build(
    graph: Path,
    inputs: Sequence[str],
    profiles: Sequence[Profile],
    target: Target,
    *,
    say: Callable[[str, str], None],
    report: Report,
) -> Built:
    """Build the plan of `graph`, whose `inputs` are int32 `(sentences, tokens)` each, for `target`.

    `say` gets all that the library says, with its severity. MexmaError tells what it gave as its reason. What
    interrupts the caller ends the build at the library's next step.
    """
    monitor = _make_monitor(target.library, report)
    begun = NATIVE.begin(lambda: _build(graph, inputs, profiles, target, monitor, say))
    # Handlers of signals run in the main thread. Within the library, what they raise would be printed and dropped.
    threading.Thread(target=begun, name="mexma-build", daemon=True).start()
    try:
        return begun.result()
    except BaseException as error:
        monitor.failure = monitor.failure or error
        begun.wait()
        raise


def _build(
    graph: Path,
    inputs: Sequence[str],
    profiles: Sequence[Profile],
    target: Target,
    monitor: Any,
    say: Callable[[str, str], None],
) -> Built:
    library = target.library
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = library.load()
    target.select()
    named = f"{library.title} {trt.__version__}"
    messages = Messages(library, say)
    logger = make_logger(library, messages)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    with _unicode(graph) as path:
        is_read = parser.parse_from_file(path)
    if not is_read:
        raise MexmaError(f"{graph}: {named} cannot read this graph: {messages.errors()}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = monitor
    target.configure(config)
    for profile in profiles:
        shapes = builder.create_optimization_profile()
        n, length = profile.n_sentences, profile.longest
        for name in inputs:
            least, best, most = (
                trt.Dims(pair) for pair in ([n.least, length.least], [n.best, length.best], [n.most, length.most])
            )
            shapes.set_shape(name, least, best, most)
        if config.add_optimization_profile(shapes) < 0:
            raise MexmaError(f"{graph}: {named} refuses the profile {profile.name}: {messages.errors()}")
    plan = builder.build_serialized_network(network, config)
    if monitor.failure:
        raise monitor.failure
    if plan is None:
        raise MexmaError(f"{graph}: {named} cannot build this network: {messages.errors()}")
    target.finish(config)
    data = view(plan)
    layers = target.inspect(data, logger)
    if layers is None and library is TENSORRT:
        raise MexmaError(f"{graph}: {named} cannot open the plan that it has built: {messages.errors()}")
    return Built(plan=data, layers=layers)


@contextmanager
def _unicode(path: Path) -> Iterator[str]:
    """A name for `path` that is Unicode, which the parsers take alone, whatever its folder is called."""
    if is_unicode(str(path)):
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _make_monitor(library: Library, report: Report) -> Any:
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = library.load()

    class Monitor(trt.IProgressMonitor):
        """TensorRT calls it, from threads of its own too; what `report` raises, Ctrl-C above all, ends the build."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._n_steps: dict[str, int] = {}
            self.failure: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: Any) -> None:
            self._n_steps[phase_name] = int(num_steps)
            self._report(phase_name, 0)

        def step_complete(self, phase_name: str, step: Any) -> bool:
            self._report(phase_name, int(step) + 1)
            return self.failure is None

        def phase_finish(self, phase_name: str) -> None:
            self._report(phase_name, self._n_steps[phase_name])

        def _report(self, phase_name: str, done: int) -> None:
            try:
                report(phase_name, done, self._n_steps[phase_name])
            except BaseException as error:  # noqa: BLE001 - it must not pass through TensorRT, and is raised after it
                self.failure = self.failure or error

    return Monitor()
