from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mexma_benchmarks.report.document import write_report
from mexma_benchmarks.report.html import inline_svg, page
from mexma_benchmarks.result.result import Result

VOID = {"meta", "link", "img", "br", "hr", "input"}
EVIL = '<script>alert("1")</script>'


class Reader(HTMLParser):
    """Elements, attributes and text of a page; unbalanced elements are an error."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader._open == []
    return reader


@pytest.fixture(scope="module")
def names() -> dict[str, str]:
    """Names that would be markup, by the names in `full_result` that they replace."""
    return {
        "infinity-emb": EVIL,
        "CTranslate2 int8": "http://localhost:8080/v1/embeddings",
        "optimum onnx": "a $b$ `c` | d",
    }


def test_the_page_of_a_full_report_is_whole_and_fetches_nothing(
    full_result: Result, names: dict[str, str], tmp_path: Path
) -> None:
    for model in full_result.models:
        for subject in model.subjects:
            subject.name = names.get(subject.name, subject.name)
        for timing in model.timings:
            timing.samples_ms = {names.get(name, name): ms for name, ms in timing.samples_ms.items()}
    write_report(full_result, tmp_path)

    reader = read((tmp_path / "report.html").read_text())

    assert {"script", "link", "img", "iframe", "a"}.isdisjoint(reader.tags)
    assert reader.tags.count("svg") == 7
    for name, value in reader.attributes:
        assert name not in {"src", "onclick", "onload", "xmlns"}
        assert "//" not in value or name == "aria-label"
        if name == "href":
            assert value.startswith("#")
    assert "@import" not in reader.text
    assert "url(" not in re.sub(r"url\(#", "", reader.text)
    for name in names.values():
        assert name in reader.text


def test_ids_are_unique_and_what_refers_to_them_is_there(full_result: Result, tmp_path: Path) -> None:
    write_report(full_result, tmp_path)

    attributes = read((tmp_path / "report.html").read_text()).attributes

    ids = [value for name, value in attributes if name == "id"]
    targets = [value[1:] for name, value in attributes if name == "href"]
    targets += [target for _, value in attributes for target in re.findall(r"url\(#(.*?)\)", value)]
    assert len(ids) == len(set(ids))
    assert len(targets) > 100
    assert set(targets) <= set(ids)


def test_markup_in_the_title_and_in_raw_markdown_is_text() -> None:
    reader = read(page(f"# {EVIL}\n\n{EVIL}\n", title=EVIL, drawings={}))

    assert "script" not in reader.tags
    assert reader.text.count("alert") == 3


def test_a_drawing_is_labelled_and_has_the_ink_of_the_page() -> None:
    svg = (
        '<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        '<metadata><x about="http://example.org"/></metadata><path id="m" style="fill: #1f2328"/>'
        '<use xlink:href="#m" clip-path="url(#m)"/><text>a &lt; b</text></svg>'
    )

    assert inline_svg(svg, label='a "b"', prefix="c1-") == (
        '<svg role="img" aria-label="a &quot;b&quot;"><path id="c1-m" style="fill: currentColor"></path>'
        '<use href="#c1-m" clip-path="url(#c1-m)"></use><text>a &lt; b</text></svg>'
    )
