"""Engines whose files are links, as the hub client's cache and mounted volumes have them.

onnxruntime (since 1.24) and OpenVINO (since 2026.2) open no weights that, links followed, lie outside of the graph's
folder. Such weights are mapped here and handed over beside the graph: nothing is copied. Field numbers: onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry
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
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types of protobuf."""


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
        inputs = b"".join(_length_delimited(11, _value_info(tensor)) for tensor in self.weights)
        parts = []
        for number, value, raw in _fields(self.graph):
            if number == 7:
                kept = (item for field, inner, item in _fields(value) if field != 5 or _name(inner) not in names)
                parts.append(_length_delimited(7, b"".join(kept) + inputs))
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
        (body,) = (value for number, value, _ in _fields(graph) if number == 7)
        weights = [_mapped(value, files) for number, value, _ in _fields(body) if number == 5 and _is_external(value)]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise BundleError(path, f"not a graph of this bundle ({error}): copy or export again") from None
    return MappedGraph(graph=graph, weights=weights)


def _mapped(tensor: bytes, files: Mapping[str, NDArray[np.uint8]]) -> MappedTensor:
    """Of a TensorProto."""
    fields = [(number, value) for number, value, _ in _fields(tensor)]
    shape = [size for number, value in fields if number == 1 for size in _numbers(value)]
    (element_type,) = (value for number, value in fields if number == 2)
    entries = [[text.decode() for _, text, _ in _fields(value)] for number, value in fields if number == 13]
    external = dict(entries)
    start, n_bytes = int(external.get("offset", 0)), int(external["length"])
    data = files[external["location"]][start : start + n_bytes]
    return MappedTensor(
        name=_name(tensor), element_type=element_type, values=data.view(DTYPES[element_type]).reshape(shape)
    )


def _name(tensor: bytes) -> str:
    (name,) = (value for number, value, _ in _fields(tensor) if number == 8)
    return str(name.decode())


def _is_external(tensor: bytes) -> bool:
    return any(number == 14 and value == EXTERNAL for number, value, _ in _fields(tensor))


def _value_info(tensor: MappedTensor) -> bytes:
    """A ValueInfoProto: name, TypeProto(tensor_type=Tensor(elem_type, TensorShapeProto))."""
    shape = b"".join(_length_delimited(1, b"\x08" + _as_varint(size)) for size in tensor.values.shape)
    tensor_type = b"\x08" + _as_varint(tensor.element_type) + _length_delimited(2, shape)
    return _length_delimited(1, tensor.name.encode()) + _length_delimited(2, _length_delimited(1, tensor_type))


def _fields(message: bytes) -> Iterator[tuple[int, Any, bytes]]:
    """The fields of a protobuf message: number, value (int, or bytes), and the field as it stands there."""
    start = 0
    while start < len(message):
        value: Any
        key, end = _varint(message, start)
        wire_type = key & 7
        if wire_type == VARINT:
            value, end = _varint(message, end)
        elif wire_type == BYTES:
            size, begin = _varint(message, end)
            end = begin + size
            value = message[begin:end]
        elif wire_type in (FIXED32, FIXED64):
            begin, end = end, end + (4 if wire_type == FIXED32 else 8)
            value = message[begin:end]
        else:
            raise ValueError(f"wire type {wire_type} at byte {start}")
        if end > len(message):
            raise ValueError(f"a field of {end - start} bytes at byte {start} of {len(message)}")
        yield key >> 3, value, message[start:end]
        start = end


def _numbers(value: int | bytes) -> list[int]:
    """Of a repeated integer, packed or by itself."""
    if isinstance(value, int):
        return [value]
    numbers, end = [], 0
    while end < len(value):
        number, end = _varint(value, end)
        numbers.append(number)
    return numbers


def _varint(message: bytes, start: int) -> tuple[int, int]:
    """The number that begins at `start`, and where it ends."""
    value, end = 0, start
    while True:
        byte = message[end]
        value |= (byte & 0x7F) << 7 * (end - start)
        end += 1
        if byte < 0x80:
            return value, end


def _as_varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _length_delimited(number: int, value: bytes) -> bytes:
    return _as_varint(number << 3 | BYTES) + _as_varint(len(value)) + value
