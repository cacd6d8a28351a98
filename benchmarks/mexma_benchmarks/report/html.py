"""A report's Markdown as one self-contained page: charts inline, its own stylesheet, no scripts, nothing fetched."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from mexma_benchmarks.report.palette import INK

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #ffffff; --rule: #d1d9e0; --stripe: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #0d1117; --rule: #3d444d; --stripe: #151b23; }
}
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; margin: 2em 0 0.6em; }
h1 { margin-top: 0.5em; font-size: 1.7rem; }
h2 { border-bottom: 1px solid var(--rule); padding-bottom: 0.2em; }
p, li { max-width: 60rem; }
.scroll { display: block; overflow-x: auto; margin: 1em 0; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid var(--rule); padding: 0.3em 0.6em; vertical-align: top; }
td { min-width: 5rem; }
td:first-child { min-width: 9rem; }
td[style*="right"] { white-space: nowrap; }
th { background: var(--stripe); text-align: left; }
tbody tr:nth-child(even) { background: var(--stripe); }
code { background: var(--stripe); padding: 0.1em 0.3em; }
svg { width: 100%; min-width: 40rem; max-width: 58rem; height: auto; color: var(--ink); }
"""


def page(markdown: str, *, title: str, drawings: Mapping[str, str]) -> str:
    """The whole page; `drawings`: a picture's address in the Markdown -> its SVG, which takes its place."""
    from markdown_it import MarkdownIt
    from markdown_it.renderer import RendererHTML

    class Renderer(RendererHTML):
        def image(self, tokens: Any, idx: int, options: Any, env: Any) -> str:
            source, label = str(tokens[idx].attrs["src"]), self.renderInlineAsText(tokens[idx].children, options, env)
            drawing = inline_svg(drawings[source], label=label, prefix=f"c{list(drawings).index(source)}-")
            return f'<span class="scroll">{drawing}</span>'

        def table_open(self, tokens: Any, idx: int, options: Any, env: Any) -> str:
            return '<div class="scroll"><table>\n'

        def table_close(self, tokens: Any, idx: int, options: Any, env: Any) -> str:
            return "</table></div>\n"

    body = MarkdownIt("commonmark", {"html": False}, renderer_cls=Renderer).enable("table").render(markdown)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def inline_svg(svg: str, *, label: str, prefix: str) -> str:
    """An SVG file as an element within HTML: in the page's own ink, and its ids unlike those of other drawings."""
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        element.tag = _local(element.tag)
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            apart = prefix + value if name == "id" else re.sub(r"^#(?=[^#]*$)|(?<=url\(#)", rf"\g<0>{prefix}", value)
            element.set(_local(name), apart.replace(INK, "currentColor"))
    for metadata in root.findall("metadata"):  # who drew it when, with addresses
        root.remove(metadata)
    root.attrib |= {"role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _local(name: str) -> str:
    return name.rpartition("}")[2]
