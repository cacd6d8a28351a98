"""Sentences out of a file of bytes, one a line."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from mexma_runtime.errors import InputError


def read_sentences(lines: Iterable[bytes], *, name: str) -> Iterator[str]:
    r"""The text of each line of a binary file, which `\n` alone ends; a `\r` before it and a byte order mark go.

    An empty line is an empty sentence. Raises InputError that names the line, counted from 1, where it is not UTF-8.
    """
    for index, line in enumerate(lines):
        content = line.removesuffix(b"\n").removesuffix(b"\r")
        if index == 0:
            content = content.removeprefix(codecs.BOM_UTF8)
        try:
            yield content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name}, line {index + 1}: not UTF-8 at byte {error.start + 1} of the line: convert the file to UTF-8"
            ) from None


def count_lines(path: Path) -> int:
    """The sentences that `read_sentences` finds in a file."""
    n_lines, last = 0, b"\n"
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            n_lines += piece.count(b"\n")
            last = piece[-1:]
    return n_lines + (last != b"\n")
