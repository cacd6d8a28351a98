from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from mexma_runtime.bundle.strict_json import MAX_NESTED, Check, MismatchError, loads, parse, read_document
from mexma_runtime.errors import BundleError
from mexma_runtime.types import Precision

EVEN = Check(expected="an even number", holds=lambda n: n % 2 == 0)


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: Annotated[int, EVEN]
    share: float


@dataclass(frozen=True, kw_only=True)
class Document:
    schema: int
    name: str | None
    inner: list[Inner]
    by_precision: dict[Precision, tuple[float, ...]]


GOOD: dict[str, Any] = {
    "schema": 1,
    "name": None,
    "inner": [{"size": 2, "share": 1}],
    "by_precision": {"fp32": [0.5, 1]},
}


@dataclass(frozen=True, kw_only=True)
class Square:
    side: int


@dataclass(frozen=True, kw_only=True)
class Circle:
    radius: int


def test_of_several_objects_the_one_with_these_fields_is_read() -> None:
    assert parse(Square | Circle, {"radius": 2}) == Circle(radius=2)
    assert parse(Square | Circle, {"side": 2}) == Square(side=2)
    with pytest.raises(MismatchError, match="radius: expected int"):
        parse(Square | Circle, {"radius": "2"})
    with pytest.raises(MismatchError, match=r"missing fields: side.*unknown fields: width"):
        parse(Square | Circle, {"width": 2})


def test_a_document_is_read_as_its_types_say() -> None:
    document = parse(Document, GOOD)
    assert document == Document(
        schema=1, name=None, inner=[Inner(size=2, share=1.0)], by_precision={Precision.FP32: (0.5, 1.0)}
    )
    assert type(document.inner[0].share) is float


def test_all_that_is_wrong_is_told_by_its_place() -> None:
    inner = [{"size": 3, "share": "1"}, {"size": 2, "shares": 1}]
    with pytest.raises(MismatchError) as caught:
        parse(Document, {**GOOD, "name": 1, "inner": inner, "by_precision": {"fp32": [True]}})
    assert caught.value.problems == [
        "name: expected str, got 1",
        "inner[0].size: expected an even number, got 3",
        'inner[0].share: expected float, got "1"',
        "inner[1]: missing fields: share",
        "inner[1]: unknown fields: shares",
        "by_precision.fp32[0]: expected float, got true",
    ]


def test_a_literal_is_one_of_its_values_and_what_may_be_anything_is_taken() -> None:
    assert parse(dict[str, Literal["a", "b"]], {"x": "a"}) == {"x": "a"}
    with pytest.raises(MismatchError, match=r"\.x: expected one of a, b, got \"c\""):
        parse(dict[str, Literal["a", "b"]], {"x": "c"})
    anything = {"x": [1, {"y": None}]}
    assert parse(Any, anything) is anything


def test_every_key_that_is_none_is_told() -> None:
    with pytest.raises(MismatchError) as caught:
        parse(Document, {**GOOD, "by_precision": {"int4": [], "fp32": [], "int2": []}})
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["by_precision.int4", "by_precision.int2"]


@pytest.mark.parametrize("value", [10**400, 2**53, "1", None, [1]])
def test_what_is_no_float_without_loss_is_none(value: object) -> None:
    with pytest.raises(MismatchError, match=r"share: expected float"):
        parse(Inner, {"size": 2, "share": value})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "fields that stand twice: c"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * (MAX_NESTED + 1) + "]" * (MAX_NESTED + 1), "nested more than 64 deep"),
        ("{", "Expecting property name"),
    ],
)
def test_json_that_hides_something_or_never_ends_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        loads(text)
    path = tmp_path / "document.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=f"document.json: cannot be read .*{said}.*: make it again"):
        read_document(Document, path, schema=1, advice="make it again")


def test_a_document_may_be_nested_so_deep() -> None:
    text = "[" * MAX_NESTED + "]" * MAX_NESTED
    assert loads(text) == json.loads(text)
