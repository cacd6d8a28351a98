from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mexma_benchmarks.report.formats import code, escape, interval, megabytes, number, table
from mexma_benchmarks.result.estimates import estimate_median

# A space may start and end a code span, and control characters are no text.
printable = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), max_size=40)
RENDERER = MarkdownIt("commonmark").enable("table")


def shown(markdown: str) -> str:
    """The text of what is rendered."""
    return html.unescape(re.sub(r"<[^>]*>", "", RENDERER.render(markdown)))


@given(printable)
def test_escaped_text_reads_as_itself_in_a_cell(text: str) -> None:
    rendered = RENDERER.render(table(["a", "b"], [["x", escape(text)]]))

    cells = re.findall(r"<td[^>]*>(.*?)</td>", rendered)
    assert [html.unescape(cell) for cell in cells] == ["x", " ".join(text.split())]


@given(printable)
def test_code_reads_as_itself(text: str) -> None:
    expected = " ".join(text.split())

    assert shown(f"Command: {code(expected or '-')}").strip() == f"Command: {expected or '-'}"


@pytest.mark.parametrize(
    "text",
    ["<script>alert(1)</script>", "[x](http://example.org)", "a|b", "**x**", "`x`", "&amp;", "![x](y)", "<b@c.d>"],
)
def test_nothing_becomes_markup(text: str) -> None:
    assert RENDERER.render(f"- {escape(text)}").count("<") == 4  # ul, li and their ends


def test_names_stay_legible() -> None:
    assert escape("x86_64, avx512_vnni") == "x86_64, avx512_vnni"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1234.5, "1,234"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.1234, "0.123"), (0.0, "0.000")],
)
def test_numbers_have_three_digits_that_count(value: float, expected: str) -> None:
    assert number(value) == expected


def test_an_interval_of_too_few_samples_is_marked() -> None:
    assert interval(estimate_median([10.0, 20.0, 30.0, 40.0, 50.0, 60.0])) == "35.0 [10.0, 60.0]"
    assert interval(estimate_median([1.0, 2.0, 3.0])) == "2.00 [1.00, 3.00]*"


def test_sizes_are_in_millions_of_bytes() -> None:
    assert megabytes(2_235_408_584) == "2,235 MB"
    assert megabytes(None) == "-"
