"""TensorRT's builder: a graph and profiles in, a plan out. Every call of it that builds is here.

Networks are strongly typed: types and Q/DQ are the graph's, so there are no precision flags and no calibrators, and
the same calls build on TensorRT 10 and 11.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mexma_runtime.backends.tensorrt_library import Messages, make_logger
from mexma_runtime.bundle.plans import HardwareCompatibility, Profile
from mexma_runtime.errors import MexmaError

if TYPE_CHECKING:
    import tensorrt as trt

Report = Callable[[str, int, int], None]
"""Called with a phase of the build, steps of it that are done, and its steps."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a build gave."""

    plan: memoryview
    timing_cache: bytes
    """What was measured, for the next build on the same GPU."""
    layers: str
    """The inspector's JSON: which kernels run, and what was fused into each."""


def build(
    graph: Path,
    inputs: Sequence[str],
    profiles: Sequence[Profile],
    *,
    compatibility: HardwareCompatibility,
    timing_cache: bytes,
    say: Callable[[str, str], None],
    report: Report,
) -> Built:
    """Build the plan of `graph`, whose `inputs` are int32 `(sentences, tokens)` each, on the current GPU.

    `timing_cache`: of an earlier build, or empty. `say` gets all that TensorRT says, with its severity. MexmaError
    tells what TensorRT gave as its reason.
    """
    import tensorrt as trt

    messages = Messages(say)
    logger = make_logger(messages)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise MexmaError(f"{graph}: TensorRT {trt.__version__} cannot read this graph: {messages.errors()}")
    monitor = _make_monitor(report)
    config = _configure(builder, compatibility)
    config.progress_monitor = monitor
    cache = config.create_timing_cache(timing_cache)
    if not config.set_timing_cache(cache, ignore_mismatch=False):  # of another GPU, or damaged: measured anew
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    for profile in profiles:
        shapes = builder.create_optimization_profile()
        n, length = profile.n_sentences, profile.longest
        for name in inputs:
            least, best, most = (
                trt.Dims(pair) for pair in ([n.least, length.least], [n.best, length.best], [n.most, length.most])
            )
            shapes.set_shape(name, least, best, most)
        if config.add_optimization_profile(shapes) < 0:
            raise MexmaError(f"{graph}: TensorRT refuses the profile {profile.name}: {messages.errors()}")
    plan = builder.build_serialized_network(network, config)
    if monitor.failure:
        raise monitor.failure
    if plan is None:
        raise MexmaError(f"{graph}: TensorRT {trt.__version__} cannot build this network: {messages.errors()}")
    data = _view(plan)
    return Built(
        plan=data,
        timing_cache=bytes(_view(config.get_timing_cache().serialize())),
        layers=_inspect(graph, data, logger, messages),
    )


def _make_monitor(report: Report) -> Any:
    import tensorrt as trt

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


def _configure(builder: trt.Builder, compatibility: HardwareCompatibility) -> trt.IBuilderConfig:
    import tensorrt as trt

    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.hardware_compatibility_level = {
        HardwareCompatibility.NONE: trt.HardwareCompatibilityLevel.NONE,
        HardwareCompatibility.SAME_CAPABILITY: trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
        HardwareCompatibility.AMPERE_PLUS: trt.HardwareCompatibilityLevel.AMPERE_PLUS,
    }[compatibility]
    return config


def _inspect(graph: Path, plan: memoryview, logger: trt.ILogger, messages: Messages) -> str:
    """Open the plan, as whoever runs it will, and list its layers."""
    import tensorrt as trt

    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise MexmaError(f"{graph}: TensorRT cannot open the plan that it has built: {messages.errors()}")
    return engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)


def _view(memory: Any) -> memoryview:
    """TensorRT's host memory as bytes; it has Python's buffer protocol, which its type stubs do not tell."""
    return memoryview(memory)
