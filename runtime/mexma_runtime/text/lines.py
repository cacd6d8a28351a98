"""The lines of a text file, the same for every command; what is no plain text in UTF-8 is refused by what it is."""

from __future__ import annotations

import codecs
import io
import re
import unicodedata
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from mexma_runtime.errors import InputError, file_errors

HEAD_BYTES = 1 << 12
"""Of a file, looked at before its lines are."""
MIN_NULS, MIN_NUL_SHARE = 8, 1 / 8
"""A head that has so many NULs is of no text in UTF-8; fewer are text, as they are to a tokenizer."""
MIN_UTF_16_NUL_SHARE = 1 / 4
"""Of what would be UTF-8, NULs and all."""

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
    """UTF-16 without a mark, or something binary. A text in UTF-8 may have a few NULs, too."""
    n_nuls = head.count(0)
    if n_nuls >= len(head) * MIN_UTF_16_NUL_SHARE or (n_nuls and not _is_utf_8(head)):
        for order in ("LE", "BE"):
            if _is_utf_16(head, f"utf-16-{order}"):
                return f"UTF-16 ({order})", _RECODE.format(f"UTF-16{order}")
    if n_nuls >= MIN_NULS and n_nuls >= MIN_NUL_SHARE * len(head):
        return f"something binary, with {n_nuls} NULs in its first {len(head)} bytes", _WRITE_OUT
    return None


def _is_utf_8(head: bytes) -> bool:
    """Whether it is valid, and without the control characters that UTF-16 has for the upper half of others."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return re.search("[\x01-\x08\x0e-\x1f]", text) is None


def _is_utf_16(head: bytes, codec: str) -> bool:
    """Whether all are characters of texts, Latin letters, spaces or line ends among them, which have a NUL each.

    In the other order of bytes a line end is U+0A00, which is none.
    """
    try:
        text = codecs.getincrementaldecoder(codec)().decode(head)
    except UnicodeDecodeError:
        return False
    kinds = {unicodedata.category(char) for char in text if char not in "\t\n\r"}
    return kinds.isdisjoint({"Cc", "Cn", "Co"}) and any(char < "\u0100" for char in text)
