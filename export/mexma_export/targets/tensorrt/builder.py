"""The builder of TensorRT and of TensorRT for RTX: a graph, profiles and a target in, a plan out.

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
from typing import TYPE_CHECKING, Any

from mexma_export.targets.tensorrt.plan_targets import Target
from mexma_runtime.backends.tensorrt_library import TENSORRT, Library, Messages, make_logger, view
from mexma_runtime.bundle.plans import Profile
from mexma_runtime.errors import MexmaError
from mexma_runtime.process import NATIVE
from mexma_runtime.types import is_unicode

Report = Callable[[str, int, int], None]
"""Called with a phase of the build, steps of it that are done, and its steps."""


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
