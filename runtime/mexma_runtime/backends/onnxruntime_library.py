"""What the backends over onnxruntime share: its import, its silence, how it opens a graph, a session on a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mexma_runtime.backends.requirements import unless_set, version_key
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.linked_files import is_linked, map_graph, relocated
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.errors import EngineUnavailableError, MissingDependencyError
from mexma_runtime.types import is_unicode

NAME = "onnxruntime"
SILENT = 4
"""Log severity `fatal`: what goes wrong is raised, nothing is printed."""
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""Where a graph in memory finds its weights, links followed."""
FINDS_WEIGHTS = (1, 21)
"""The first release that heeds it."""
TELEMETRY = "ORT_DISABLE_TELEMETRY"
"""Else onnxruntime starts a thread for it when it is imported, which a forked child waits for when it ends."""
OURS = {"gpu_graph_id": "-1", "disable_synchronize_execution_providers": "1"}
"""Of runs on a device: onnxruntime neither captures nor replays them, and does not wait. Graphs, stream and waiting are
ours."""


class OrtBinding:
    """An IO binding whose memory is all on one device."""

    def __init__(self, inner: Any, kind: str, index: int) -> None:
        self.inner, self._device = inner, (kind, index)

    def bind_input(self, name: str, dtype: type[np.generic], shape: tuple[int, ...], pointer: int) -> None:
        """Read the input `name` from `pointer`."""
        self.inner.bind_input(name, *self._device, dtype, shape, pointer)

    def bind_output(self, name: str, dtype: type[np.generic], shape: tuple[int, ...], pointer: int) -> None:
        """Write the output `name` to `pointer`."""
        self.inner.bind_output(name, *self._device, dtype, shape, pointer)


class OrtSession:
    """onnxruntime's session as a device's Session."""

    library = NAME
    captures = False

    def __init__(self, inner: Any, kind: str, index: int, *, keeps: Any = None) -> None:
        """`kind` and `index`: of the device, as onnxruntime names it. `keeps`: what has to live as long as `inner`."""
        self._inner, self._device, self._options, self._keeps = inner, (kind, index), run_options(OURS), keeps
        self.providers = tuple(inner.get_providers())

    def holds(self, n_sentences: int, longest: int) -> bool:
        """True: onnxruntime runs any shape."""
        return True

    def binding(self, *, is_fixed: bool) -> OrtBinding:
        """A new IO binding of the session."""
        return OrtBinding(self._inner.io_binding(), *self._device)

    def run(self, binding: OrtBinding) -> None:
        """Queue a run of what is bound, and return."""
        self._inner.run_with_iobinding(binding.inner, self._options)


def open_session(
    bundle: Bundle, engine: EngineEntry, options: Any, *, change: Callable[[bytes], bytes] | None = None, **more: Any
) -> Any:
    """onnxruntime's session for the graph of `engine`, wherever its files lie; `options` and `more` are its own.

    `change` gives the graph to open, of the bytes of the one in the bundle.
    """
    import onnxruntime as ort

    path, mapped = bundle.path(engine.file).resolve(), None
    is_apart = is_linked(bundle, engine)
    if not is_apart and not change:
        return ort.InferenceSession(str(path), options, **more)
    graph, folder = relocated(bundle, engine) if is_apart else (path.read_bytes(), path.parent)
    if version_key(ort.__version__) >= FINDS_WEIGHTS and is_unicode(str(folder)):
        options.add_session_config_entry(WEIGHTS_FOLDER, str(folder))
    else:
        mapped = map_graph(bundle, engine)
        graph = mapped.graph
        values = [
            ort.OrtValue.ortvalue_from_numpy_with_onnx_type(tensor.values, tensor.element_type)
            for tensor in mapped.weights
        ]
        options.add_external_initializers([tensor.name for tensor in mapped.weights], values)
    session = ort.InferenceSession(change(graph) if change else graph, options, **more)
    session.weights = mapped  # it takes their addresses alone
    return session


def run_options(settings: Mapping[str, str]) -> Any:
    """Options of a run that prints nothing; `settings` are onnxruntime's own."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = SILENT
    for name, value in settings.items():
        options.add_run_config_entry(name, value)
    return options


def import_onnxruntime(*, package: str, needed_for: str, extra: str) -> Any:
    """onnxruntime; MissingDependencyError where `package` would bring it."""
    try:
        with unless_set(TELEMETRY, "1"):
            import onnxruntime
    except ImportError as error:
        if error.name == NAME and isinstance(error, ModuleNotFoundError):
            raise MissingDependencyError(package, needed_for=needed_for, extra=extra) from error
        raise EngineUnavailableError(f"{NAME} is installed but cannot be imported: {error}") from error
    return onnxruntime
