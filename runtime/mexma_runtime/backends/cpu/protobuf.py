"""Protobuf's wire format, as far as changing a graph takes: fields of a message, read and written; without a schema."""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5
"""How a field is stored: the low three bits of its key."""


def fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Of each field its number, its content where that is bytes, and all of it as it is stored.

    Raises IndexError or KeyError where `message` is no message.
    """
    position = 0
    while position < len(message):
        start = position
        key, position = _read_varint(message, position)
        content = b""
        if key % 8 == BYTES:
            size, position = _read_varint(message, position)
            content = message[position : position + size]
            position += size
        elif key % 8 == VARINT:
            _, position = _read_varint(message, position)
        else:
            position += {FIXED_64: 8, FIXED_32: 4}[key % 8]
        yield key // 8, content, message[start:position]


def texts(message: bytes, wanted: int) -> tuple[str, ...]:
    """The fields of number `wanted`, which are strings."""
    return tuple(content.decode() for number, content, _ in fields(message) if number == wanted)


def bytes_field(number: int, content: bytes) -> bytes:
    """A field that holds a string or a message."""
    return _varint(number * 8 + BYTES) + _varint(len(content)) + content


def integer_field(number: int, value: int) -> bytes:
    """A field that holds an integer from 0 up, or an enumeration's."""
    return _varint(number * 8 + VARINT) + _varint(value)


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def _varint(value: int) -> bytes:
    groups = [value >> shift & 127 for shift in range(0, max(1, value.bit_length()), 7)]
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])
