"""JSON values as dataclasses, strictly: all that is missing, unknown or of another type is told by the field's name."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from mexma_runtime.errors import BundleError

MAX_SHOWN = 80
"""Characters of a wrong value."""
MAX_NESTED = 64
"""Of objects and lists."""
MAX_WHOLE = 1 << 53
"""Whole numbers below are floats without loss."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a field has to be beside its type: `Annotated[int, Check(expected="8 or 7", holds=(7, 8).__contains__)]`."""

    expected: str
    holds: Callable[[Any], Any]


class MismatchError(Exception):
    """A JSON value is not what was expected; `problems` has a line for each field that is wrong."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("; ".join(problems))


def loads(text: str) -> Any:
    """JSON `text` as json.loads has it; ValueError too for a key that stands twice, and for deep nesting."""
    try:
        data = json.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [data]
    for _ in range(MAX_NESTED):
        level = [item for value in level for item in _items(value)]
    if level:
        raise ValueError(f"nested more than {MAX_NESTED} deep")
    return data


def _items(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        raise ValueError(f"fields that stand twice: {', '.join(repeated)}")
    return dict(pairs)


def read_document(
    expected: Any,
    path: Path,
    *,
    schema: int,
    advice: str,
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Any:
    """The file `path` as the dataclass `expected`, whose `schema` is that number.

    `upgrade`: what the data of any older schema is in that one; None: there is none. BundleError names what is wrong,
    and `advice` what to do about it.
    """
    try:
        data: Any = loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(path, f"cannot be read ({error}): {advice}") from None
    found = data.get("schema") if isinstance(data, dict) else None
    if upgrade and type(found) is int and 1 <= found < schema:
        data = {**upgrade(data), "schema": schema}
    elif found != schema:
        raise BundleError(path, f"expected schema {schema}{' or an older one' if upgrade else ''}: {advice}")
    return read_value(expected, data, path=path, advice=advice)


def read_value(expected: Any, value: Any, *, path: Path, advice: str = "") -> Any:
    """The same as `parse`; BundleError names `path` and the fields, and tells the `advice`."""
    try:
        return parse(expected, value)
    except MismatchError as error:
        problems = error.problems
        told = problems[0] if len(problems) == 1 else "".join(f"\n  - {problem}" for problem in problems)
        raise BundleError(path, f"{told}: {advice}" if advice else told) from None


@functools.cache
def _hints(expected: type) -> dict[str, Any]:
    """The types of a dataclass's fields, looked up once: a manifest has hundreds of objects of a kind."""
    hints = typing.get_type_hints(expected, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(expected)}


def _has_fields_of(expected: Any, value: Any) -> bool:
    """Whether `expected` is the dataclass, of several in a union, that an object was written from."""
    if not (isinstance(value, dict) and isinstance(expected, type) and dataclasses.is_dataclass(expected)):
        return False
    return _hints(expected).keys() == value.keys()


def parse(expected: Any, value: Any, where: str = "") -> Any:
    """Turn JSON `value` into `expected`: a dataclass, enumeration, literal, list, tuple, mapping, union, plain type, or
    one of these with a Check; what is Any is taken as it is.

    A whole number will do for a float: 1 is how some writers spell 1.0. MismatchError names the fields that are wrong.
    """

    def refuse(wanted: str) -> MismatchError:
        return MismatchError([f"{where or 'top level'}: expected {wanted}, got {json.dumps(value)[:MAX_SHOWN]}"])

    def parse_all(parts: dict[Any, tuple[Any, Any, str]], problems: Sequence[str] = ()) -> dict[Any, Any]:
        """Key -> type, value, and the name below `where`; what is wrong is told behind `problems`."""
        parsed, problems = {}, [*problems]
        for key, (inner, item, name) in parts.items():
            try:
                parsed[key] = parse(inner, item, where + name)
            except MismatchError as error:
                problems += error.problems
        if problems:
            raise MismatchError(problems)
        return parsed

    if expected is Any:
        return value
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is typing.Literal:
        if value not in arguments:
            raise refuse(f"one of {', '.join(map(str, arguments))}")
        return value
    if origin is Annotated:
        (check,) = (extra for extra in arguments[1:] if isinstance(extra, Check))
        try:
            parsed = parse(arguments[0], value, where)
        except MismatchError:
            raise refuse(check.expected) from None
        if not check.holds(parsed):
            raise refuse(check.expected)
        return parsed
    if dataclasses.is_dataclass(expected):
        assert isinstance(expected, type)
        if not isinstance(value, dict):
            raise refuse("an object")
        hints = _hints(expected)
        problems = [
            f"{where or 'top level'}: {what} fields: {', '.join(sorted(names))}"
            for what, names in (("missing", hints.keys() - value.keys()), ("unknown", value.keys() - hints.keys()))
            if names
        ]
        dot = "." if where else ""
        there = {name: (hint, value[name], f"{dot}{name}") for name, hint in hints.items() if name in value}
        return expected(**parse_all(there, problems))
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        options = [option for option in arguments if option is not type(None)]
        fitting = (option for option in options if option is type(value) or _has_fields_of(option, value))
        return parse(next(fitting, options[0]), value, where)
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise refuse("a list")
        items = parse_all({i: (arguments[0], item, f"[{i}]") for i, item in enumerate(value)})
        return origin(items.values())
    if origin in (dict, collections.abc.Mapping):
        if not isinstance(value, dict):
            raise refuse("an object")
        keys = parse_all({key: (arguments[0], key, f".{key}") for key in value})
        items = parse_all({key: (arguments[1], item, f".{key}") for key, item in value.items()})
        return {keys[key]: item for key, item in items.items()}
    if isinstance(expected, type) and issubclass(expected, StrEnum):
        if value not in list(expected):
            raise refuse(f"one of {', '.join(expected)}")
        return expected(value)
    if expected is float and type(value) is int and abs(value) < MAX_WHOLE:
        return float(value)
    if type(value) is not expected:
        raise refuse(expected.__name__)
    return value
