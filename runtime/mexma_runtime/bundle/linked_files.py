"""Engines whose files are links, as the hub client's cache and mounted volumes have them.

onnxruntime (since 1.24) and OpenVINO (since 2026.2) open no weights that, links followed, lie outside of the graph's
folder. Such weights are mapped here and handed over beside the graph: nothing is copied. Field numbers: onnx.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.bundle.protobuf import as_varint, fields, length_delimited, varint
from mexma_runtime.errors import BundleError

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
EXTERNAL = 1
"""TensorProto.data_location of a tensor in another file."""


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

    def with_weights_as_inputs(self) -> bytes:
        """The graph with an input in place of each of `weights`."""
        names = {tensor.name for tensor in self.weights}
        inputs = b"".join(length_delimited(11, _value_info(tensor)) for tensor in self.weights)
        parts = []
        for number, value, raw in fields(self.graph):
            if number == 7:
                kept = (item for field, inner, item in fields(value) if field != 5 or _name(inner) not in names)
                parts.append(length_delimited(7, b"".join(kept) + inputs))
            else:
                parts.append(raw)
        return b"".join(parts)


def is_linked(bundle: Bundle, engine: EngineEntry) -> bool:
    """Whether the files of `engine`, links followed, lie elsewhere than side by side under their own names."""
    paths = [bundle.path(name) for name in (engine.file, *engine.weights)]
    real = [path.resolve() for path in paths]
    return len({path.parent for path in real}) > 1 or [path.name for path in paths] != [path.name for path in real]


def map_graph(bundle: Bundle, engine: EngineEntry) -> MappedGraph:
    """The graph of `engine` with its weights mapped; BundleError where the file is no ONNX graph."""
    path = bundle.path(engine.file)
    graph = path.read_bytes()
    # Private and writable, as OpenVINO takes no other memory without a copy; nobody writes to it.
    files = {name: np.memmap(bundle.path(name), dtype=np.uint8, mode="c") for name in engine.weights}
    try:
        (body,) = (value for number, value, _ in fields(graph) if number == 7)
        weights = [_mapped(value, files) for number, value, _ in fields(body) if number == 5 and _is_external(value)]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise BundleError(path, f"not a graph of this bundle ({error}): copy or export again") from None
    return MappedGraph(graph=graph, weights=weights)


def _mapped(tensor: bytes, files: Mapping[str, NDArray[np.uint8]]) -> MappedTensor:
    """Of a TensorProto."""
    parts = [(number, value) for number, value, _ in fields(tensor)]
    shape = [size for number, value in parts if number == 1 for size in _numbers(value)]
    (element_type,) = (value for number, value in parts if number == 2)
    entries = [[text.decode() for _, text, _ in fields(value)] for number, value in parts if number == 13]
    external = dict(entries)
    start, n_bytes = int(external.get("offset", 0)), int(external["length"])
    data = files[external["location"]][start : start + n_bytes]
    return MappedTensor(
        name=_name(tensor), element_type=element_type, values=data.view(DTYPES[element_type]).reshape(shape)
    )


def _name(tensor: bytes) -> str:
    (name,) = (value for number, value, _ in fields(tensor) if number == 8)
    return str(name.decode())


def _is_external(tensor: bytes) -> bool:
    return any(number == 14 and value == EXTERNAL for number, value, _ in fields(tensor))


def _value_info(tensor: MappedTensor) -> bytes:
    """A ValueInfoProto: name, TypeProto(tensor_type=Tensor(elem_type, TensorShapeProto))."""
    shape = b"".join(length_delimited(1, b"\x08" + as_varint(size)) for size in tensor.values.shape)
    tensor_type = b"\x08" + as_varint(tensor.element_type) + length_delimited(2, shape)
    return length_delimited(1, tensor.name.encode()) + length_delimited(2, length_delimited(1, tensor_type))


def _numbers(value: int | bytes) -> list[int]:
    """Of a repeated integer, packed or by itself."""
    if isinstance(value, int):
        return [value]
    numbers, end = [], 0
    while end < len(value):
        number, end = varint(value, end)
        numbers.append(number)
    return numbers
