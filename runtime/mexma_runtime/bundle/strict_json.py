"""JSON values as dataclasses, strictly: what is missing, unknown or of another type is refused by the field's name."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from enum import StrEnum
from pathlib import Path
from typing import Any

from mexma_runtime.errors import BundleError


def read_document(expected: Any, path: Path, *, schema: int, advice: str) -> Any:
    """The file `path` as the dataclass `expected`, whose `schema` is that number.

    BundleError names what is wrong, and `advice` what to do about it.
    """
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(path, f"cannot be read ({error}): {advice}") from None
    if not isinstance(data, dict) or data.get("schema") != schema:
        raise BundleError(path, f"expected schema {schema}: {advice}")
    return read_value(expected, data, path=path)


def read_value(expected: Any, value: Any, *, path: Path, where: str = "") -> Any:
    """Turn JSON `value` into `expected`: a dataclass, enumeration, list, dict, union or plain type.

    A whole number will do for a float: 1 is how some writers spell 1.0. BundleError names `path` and the field.
    """

    def refuse(wanted: str) -> BundleError:
        return BundleError(path, f"{where or 'top level'}: expected {wanted}, got {json.dumps(value)[:80]}")

    def read(inner: Any, item: Any, name: str) -> Any:
        return read_value(inner, item, path=path, where=where + name)

    origin = typing.get_origin(expected)
    if dataclasses.is_dataclass(expected):
        assert isinstance(expected, type)
        if not isinstance(value, dict):
            raise refuse("an object")
        hints = typing.get_type_hints(expected)
        if value.keys() != hints.keys():
            differing = ", ".join(sorted(value.keys() ^ hints.keys()))
            raise BundleError(path, f"{where or 'top level'}: missing or unknown fields: {differing}")
        return expected(
            **{name: read(hints[name], item, f".{name}" if where else name) for name, item in value.items()}
        )
    if origin is types.UnionType:
        if value is None and type(None) in typing.get_args(expected):
            return None
        options = [option for option in typing.get_args(expected) if option is not type(None)]
        return read(type(value) if type(value) in options else options[0], value, "")
    if origin is list:
        if not isinstance(value, list):
            raise refuse("a list")
        return [read(typing.get_args(expected)[0], item, f"[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise refuse("an object")
        return {key: read(typing.get_args(expected)[1], item, f".{key}") for key, item in value.items()}
    if isinstance(expected, type) and issubclass(expected, StrEnum):
        if value not in list(expected):
            raise refuse(f"one of {', '.join(expected)}")
        return expected(value)
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is not expected:
        raise refuse(expected.__name__)
    return value
