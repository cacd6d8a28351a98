"""Protobuf's wire format, as far as reading and changing a graph takes: without a schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""


def fields(message: bytes) -> Iterator[tuple[int, Any, bytes]]:
    """The fields of a protobuf message: number, value (int, or bytes), and the field as it stands there.

    Raises IndexError or ValueError where `message` is none.
    """
    start = 0
    while start < len(message):
        value: Any
        key, end = varint(message, start)
        wire_type = key & 7
        if wire_type == VARINT:
            value, end = varint(message, end)
        elif wire_type == BYTES:
            size, begin = varint(message, end)
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


def varint(message: bytes, start: int) -> tuple[int, int]:
    """The number that begins at `start`, and where it ends."""
    value, end = 0, start
    while True:
        byte = message[end]
        value |= (byte & 0x7F) << 7 * (end - start)
        end += 1
        if byte < 0x80:
            return value, end


def as_varint(value: int) -> bytes:
    """A number from 0 up, as `varint` reads it."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def length_delimited(number: int, value: bytes) -> bytes:
    """A field that holds a string or a message."""
    return as_varint(number << 3 | BYTES) + as_varint(len(value)) + value
