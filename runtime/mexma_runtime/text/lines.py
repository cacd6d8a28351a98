"""The lines of a text file, the same for every command; what is no plain text in UTF-8 is refused by what it is."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from mexma_runtime.errors import InputError, file_errors

HEAD_BYTES = 1 << 12
"""Of a file, looked at before its lines are."""
MIN_NULS, MIN_NUL_SHARE = 8, 1 / 8
"""A head that has so many NULs is of no text in UTF-8; fewer are text, as they are to a tokenizer."""

_UNPACK = "unpack it first, as by {} FILE"
_RECODE = "convert it: iconv -f {} -t UTF-8 FILE"
_WRITE_OUT = "write its texts to a file, one a line"
_KINDS: dict[str, tuple[str, str]] = {
    r"\x1f\x8b": ("gzip", _UNPACK.format("zcat")),
    r"BZh[1-9](1AY&SY|\x17rE8P\x90)": ("bzip2", _UNPACK.format("bzcat")),
    r"\xfd7zXZ\0": ("xz", _UNPACK.format("xzcat")),
    r"\x28\xb5\x2f\xfd": ("Zstandard", _UNPACK.format("zstdcat")),
    r"PK\x03\x04": ("a ZIP archive or an office document", "take the text out of it first"),
    r"PAR1\x15": ("Parquet", _WRITE_OUT),
    r"ARROW1\0": ("Arrow", _WRITE_OUT),
    r"\x93NUMPY": ("a NumPy array", _WRITE_OUT),
    r"SQLite format 3\0": ("an SQLite database", _WRITE_OUT),
    r"%PDF-": ("PDF", "take the text out of it first: pdftotext FILE"),
    r"\xff\xfe\0\0|\0\0\xfe\xff": ("UTF-32", _RECODE.format("UTF-32")),
    r"\xff\xfe|\xfe\xff": ("UTF-16", _RECODE.format("UTF-16")),
}
"""How a file begins -> what it is, and what to do. The first that fits decides."""


def read_lines(file: BinaryIO, *, name: str, skipped: list[int] | None = None, way_on: str = "") -> Iterator[str]:
    r"""The text of each line, which `\n` alone ends; one `\r` before it goes, and a byte order mark at its start.

    An empty line is an empty text. The numbers of lines that are not UTF-8, from 1, are added to `skipped` where it is
    given; else InputError names the first, what to do, and the `way_on`. InputError, too, for what is no text at all;
    FileError where reading fails.
    """
    with file_errors(name, "cannot be read"):
        head = file.read(HEAD_BYTES)
        _require_text(head, name)
        for number, line in enumerate(chain(io.BytesIO(head + file.readline()), file), start=1):
            content = line.removesuffix(b"\n").removesuffix(b"\r").removeprefix(codecs.BOM_UTF8)
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError as error:
                if skipped is None:
                    raise InputError(
                        f"{name}, line {number}: not UTF-8 at byte {error.start + 1} of the line: convert the file, as "
                        f"by `iconv -f WINDOWS-1252 -t UTF-8`{way_on}"
                    ) from None
                skipped.append(number)
            else:
                yield text


def file_lines(path: Path) -> list[str]:
    """The lines of a file, as `read_lines` has them and with its errors."""
    with file_errors(path, "cannot be read"), path.open("rb") as file:
        return list(read_lines(file, name=str(path)))


def _require_text(head: bytes, name: str) -> None:
    """InputError says what else the file is."""
    kinds = (kind for beginning, kind in _KINDS.items() if re.match(beginning.encode(), head))
    if kind := next(kinds, None) or _by_nuls(head):
        raise InputError(f"{name}: expected text in UTF-8, got {kind[0]}: {kind[1]}")


def _by_nuls(head: bytes) -> tuple[str, str] | None:
    r"""UTF-16 without a mark, in which every `\n` has a NUL on the same side; or something binary."""
    even, odd = head[0::2], head[1::2]
    for order, high, low in (("LE", odd, even), ("BE", even, odd)):
        n_ends = sum(pair == (0, 10) for pair in zip(high, low, strict=False))
        is_all_ends = n_ends == head.count(b"\n")
        if 0 in high and 0 not in low and is_all_ends and (n_ends or 2 * high.count(0) >= len(high) > 1):
            return f"UTF-16 ({order})", _RECODE.format(f"UTF-16{order}")
    n_nuls = head.count(0)
    if n_nuls >= MIN_NULS and n_nuls >= MIN_NUL_SHARE * len(head):
        return f"something binary, with {n_nuls} NULs in its first {len(head)} bytes", _WRITE_OUT
    return None
