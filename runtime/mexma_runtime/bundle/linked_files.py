"""Engines whose files are links, as the hub client's cache and mounted volumes have them.

onnxruntime (since 1.24) and OpenVINO (since 2026.2) open no weights that, links followed, lie outside of the graph's
folder. onnxruntime is given the graph with the real places of its weights, below a folder that has all of them. For
OpenVINO they are mapped here and handed over beside the graph, which it computes with as they are; onnxruntime would
copy them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.bundle.protobuf import bytes_field, fields, integer_field, numbers, texts
from mexma_runtime.errors import BundleError
from mexma_runtime.types import is_unicode

DTYPES: dict[int, Any] = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    6: np.int32,
    7: np.int64,
    10: np.float16,
    17: np.uint8,
}
"""TensorProto.DataType -> what NumPy reads it as; it has no FLOAT8E4M3FN (17)."""

# The numbers of fields in onnx.proto.
MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT = 1, 5, 11
NODE_INPUT, NODE_OUTPUT = 1, 2
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_EXTERNAL_DATA, TENSOR_LOCATION = 1, 2, 8, 13, 14
EXTERNAL = 1
"""A tensor's location: another file."""
KEY, VALUE = 1, 2
"""Of an entry of external_data."""
VALUE_NAME, VALUE_TYPE, TYPE_TENSOR, TENSOR_TYPE_ELEMENT, TENSOR_TYPE_SHAPE, SHAPE_DIM, DIM_VALUE = 1, 2, 1, 1, 2, 1, 1


@dataclass(frozen=True, kw_only=True, eq=False)
class MappedTensor:
    """A tensor of a graph whose values lie in a file of weights."""

    name: str
    element_type: int
    """A TensorProto.DataType."""
    values: NDArray[Any]
    """Mapped from the file; of the tensor's shape."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MappedGraph:
    """An ONNX graph and its weights, which whoever opens it has to keep."""

    graph: bytes
    weights: list[MappedTensor]

    def weights_read_in_runs(self) -> list[MappedTensor]:
        """Those of `weights` that stay as they are: of others alone, onnxruntime computes new ones when it opens it."""
        (body,) = (value for number, value, _ in fields(self.graph) if number == MODEL_GRAPH)
        tensors = (value for number, value, _ in fields(body) if number == GRAPH_INITIALIZER)
        constants = {"", *(name for tensor in tensors for name in texts(tensor, TENSOR_NAME))}
        read: set[str] = set()
        for node in (value for number, value, _ in fields(body) if number == GRAPH_NODE):
            if constants.issuperset(inputs := texts(node, NODE_INPUT)):
                constants.update(texts(node, NODE_OUTPUT))
            else:
                read.update(inputs)
        return [tensor for tensor in self.weights if tensor.name in read]

    def with_weights_as_inputs(self) -> bytes:
        """The graph with an input in place of each of `weights`."""
        names = {tensor.name for tensor in self.weights}
        inputs = [bytes_field(GRAPH_INPUT, _value_info(tensor)) for tensor in self.weights]

        def detached(graph: bytes) -> bytes:
            return b"".join(
                [raw for number, value, raw in fields(graph) if not _is_weight(number, value, names)] + inputs
            )

        return _replaced(self.graph, MODEL_GRAPH, detached)


def is_linked(bundle: Bundle, engine: EngineEntry) -> bool:
    """Whether the files of `engine`, links followed, lie elsewhere than side by side under their own names.

    Or in a folder whose name is no Unicode, which the libraries do not take.
    """
    paths = [bundle.path(name) for name in (engine.file, *engine.weights)]
    real = [path.resolve() for path in paths]
    are_apart = len({path.parent for path in real}) > 1 or [path.name for path in paths] != [path.name for path in real]
    return are_apart or not is_unicode(str(real[0]))


def relocated(bundle: Bundle, engine: EngineEntry) -> tuple[bytes, Path]:
    """The graph of `engine` with the real places of its weights, and the folder that they are told from.

    BundleError where the file is no ONNX graph.
    """
    path = bundle.path(engine.file)
    real = {name: bundle.path(name).resolve() for name in engine.weights}
    folder = Path(os.path.commonpath([there.parent for there in real.values()] or [path.resolve().parent]))
    places = {name: there.relative_to(folder).as_posix() for name, there in real.items()}

    def moved(tensor: bytes) -> bytes:
        return _replaced(tensor, TENSOR_EXTERNAL_DATA, lambda entry: _replaced(entry, VALUE, place))

    def place(value: bytes) -> bytes:
        return places.get(value.decode(), value.decode()).encode()

    with _is_graph(path):
        model = _replaced(path.read_bytes(), MODEL_GRAPH, lambda graph: _replaced(graph, GRAPH_INITIALIZER, moved))
    return model, folder


def map_graph(bundle: Bundle, engine: EngineEntry) -> MappedGraph:
    """The graph of `engine` with its weights mapped; BundleError where the file is no ONNX graph."""
    path = bundle.path(engine.file)
    graph = path.read_bytes()
    # Private and writable, as OpenVINO takes no other memory without a copy; nobody writes to it.
    files = {name: np.memmap(bundle.path(name), dtype=np.uint8, mode="c") for name in engine.weights}
    with _is_graph(path):
        (body,) = (value for number, value, _ in fields(graph) if number == MODEL_GRAPH)
        tensors = (value for number, value, _ in fields(body) if number == GRAPH_INITIALIZER)
        weights = [_mapped(tensor, files) for tensor in tensors if numbers(tensor, TENSOR_LOCATION) == [EXTERNAL]]
    return MappedGraph(graph=graph, weights=weights)


@contextmanager
def _is_graph(path: Path) -> Iterator[None]:
    try:
        yield
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise BundleError(path, f"not a graph of this bundle ({error}): copy or export again") from None


def _replaced(message: bytes, wanted: int, change: Callable[[bytes], bytes]) -> bytes:
    """`message` with other values of the field of number `wanted`."""
    return b"".join(
        bytes_field(number, change(value)) if number == wanted else raw for number, value, raw in fields(message)
    )


def _mapped(tensor: bytes, files: Mapping[str, NDArray[np.uint8]]) -> MappedTensor:
    """Of a TensorProto."""
    entries = [value for number, value, _ in fields(tensor) if number == TENSOR_EXTERNAL_DATA]
    external = {texts(entry, KEY)[0]: texts(entry, VALUE)[0] for entry in entries}
    start, n_bytes = int(external.get("offset", 0)), int(external["length"])
    data = files[external["location"]][start : start + n_bytes]
    (element_type,) = numbers(tensor, TENSOR_TYPE)
    shape = numbers(tensor, TENSOR_DIMS)
    (name,) = texts(tensor, TENSOR_NAME)
    return MappedTensor(name=name, element_type=element_type, values=data.view(DTYPES[element_type]).reshape(shape))


def _is_weight(number: int, value: Any, names: set[str]) -> bool:
    return number == GRAPH_INITIALIZER and not names.isdisjoint(texts(value, TENSOR_NAME))


def _value_info(tensor: MappedTensor) -> bytes:
    dims = (bytes_field(SHAPE_DIM, integer_field(DIM_VALUE, size)) for size in tensor.values.shape)
    shape = bytes_field(TENSOR_TYPE_SHAPE, b"".join(dims))
    tensor_type = integer_field(TENSOR_TYPE_ELEMENT, tensor.element_type) + shape
    return bytes_field(VALUE_NAME, tensor.name.encode()) + bytes_field(
        VALUE_TYPE, bytes_field(TYPE_TENSOR, tensor_type)
    )
