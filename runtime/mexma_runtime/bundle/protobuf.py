"""Protobuf's wire format, as far as ONNX graphs take: fields of a message, read and written; without a schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5
"""How a field is stored: the low three bits of its key."""


def fields(message: bytes) -> Iterator[tuple[int, Any, bytes]]:
    """Of each field its number, its value (int, or bytes), and all of it as it is stored.

    Raises IndexError or ValueError where `message` is no message.
    """
    start = 0
    while start < len(message):
        value: Any
        key, end = _read_varint(message, start)
        wire_type = key & 7
        if wire_type == VARINT:
            value, end = _read_varint(message, end)
        elif wire_type in (BYTES, FIXED_32, FIXED_64):
            size, begin = _read_varint(message, end) if wire_type == BYTES else (4 if wire_type == FIXED_32 else 8, end)
            end = begin + size
            value = message[begin:end]
        else:
            raise ValueError(f"wire type {wire_type} at byte {start}")
        if end > len(message):
            raise ValueError(f"a field of {end - start} bytes at byte {start} of {len(message)}")
        yield key >> 3, value, message[start:end]
        start = end


def texts(message: bytes, wanted: int) -> tuple[str, ...]:
    """The fields of number `wanted`, which are strings."""
    return tuple(value.decode() for number, value, _ in fields(message) if number == wanted)


def numbers(message: bytes, wanted: int) -> list[int]:
    """The fields of number `wanted`, which are integers, each by itself or packed."""
    found = []
    for number, value, _ in fields(message):
        if number == wanted and isinstance(value, int):
            found.append(value)
        elif number == wanted:
            end = 0
            while end < len(value):
                item, end = _read_varint(value, end)
                found.append(item)
    return found


def bytes_field(number: int, content: bytes) -> bytes:
    """A field that holds a string or a message."""
    return _varint(number << 3 | BYTES) + _varint(len(content)) + content


def integer_field(number: int, value: int) -> bytes:
    """A field that holds an integer from 0 up, or an enumeration's."""
    return _varint(number << 3 | VARINT) + _varint(value)


def _read_varint(message: bytes, start: int) -> tuple[int, int]:
    """The number that begins at `start`, and where it ends."""
    value, end = 0, start
    while True:
        byte = message[end]
        value |= (byte & 0x7F) << 7 * (end - start)
        end += 1
        if byte < 0x80:
            return value, end


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
