from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mexma_runtime.errors import FileError, InputError
from mexma_runtime.text.lines import HEAD_BYTES, file_lines, read_lines

TEXT = "Die Fähre fährt mittags.\nIt rains.\n"
ASCII = "It rains.\nA kitten.\n"
CHINESE = "上海很美。\n一人下雨。\n" * 3
RUSSIAN = "Привет\nлюди\n"


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\n\nb", ["a", "", "b"]),
        (b"a\rb\n", ["a\rb"]),
        (b"a\r\r\n", ["a\r"]),
        ("a\u2028b\x0bc\x0cd\x1ce\x85f\n".encode(), ["a\u2028b\x0bc\x0cd\x1ce\x85f"]),
        (b"\xef\xbb\xbfa\nb\n\xef\xbb\xbfc", ["a", "b", "c"]),
        ("a\ufeffb\n".encode(), ["a\ufeffb"]),
        (b"a\0b\nc\n", ["a\0b", "c"]),
        (b"\0", ["\0"]),
        (b"hello world!\0\n", ["hello world!\0"]),
        ("上".encode() * 3000 + b"\nb", ["上" * 3000, "b"]),
    ],
)
def test_lines_end_at_line_feeds_alone(tmp_path: Path, content: bytes, lines: list[str]) -> None:
    path = tmp_path / "lines"
    path.write_bytes(content)
    assert file_lines(path) == lines


@pytest.mark.parametrize("n", [HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 1])
def test_no_line_is_lost_or_split_where_the_head_ends(n: int) -> None:
    lines = ["x" * (n - 1), "second", "third"]
    assert list(read_lines(io.BytesIO("\n".join(lines).encode()), name="f")) == lines


def arrays() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3, np.float32))
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", TEXT)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(TEXT.encode()), "got gzip: unpack it first, as by zcat FILE"),
        (bz2.compress(TEXT.encode()), "got bzip2: unpack it first"),
        (bz2.compress(b""), "got bzip2"),
        (lzma.compress(TEXT.encode()), "got xz: unpack it first"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "got Zstandard: unpack it first"),
        (zipped(), "got a ZIP archive or an office document"),
        (arrays(), "got a NumPy array: write its texts to a file"),
        (b"PAR1\x15\x04\x15\x10\x15\x14L\x15\x02PAR1", "got Parquet: write its texts to a file, one a line"),
        (b"ARROW1\0\0\xff\xff", "got Arrow"),
        (b"%PDF-1.7\n", "got PDF: take the text out of it first"),
        (TEXT.encode("utf-16"), "got UTF-16: convert it: iconv -f UTF-16 -t UTF-8 FILE"),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), "got UTF-16: convert"),
        (TEXT.encode("utf-32"), "got UTF-32: convert it: iconv -f UTF-32"),
        (TEXT.encode("utf-16-le"), r"got UTF-16 \(LE\): convert it: iconv -f UTF-16LE"),
        (ASCII.encode("utf-16-be"), r"got UTF-16 \(BE\): convert it: iconv -f UTF-16BE"),
        (RUSSIAN.encode("utf-16-le"), r"got UTF-16 \(LE\)"),
        (RUSSIAN.encode("utf-16-be"), r"got UTF-16 \(BE\)"),
        (CHINESE.encode("utf-16-le"), r"got UTF-16 \(LE\)"),
        (CHINESE.encode("utf-16-be"), r"got UTF-16 \(BE\)"),
        ("One line".encode("utf-16-le"), r"got UTF-16 \(LE\)"),
        ((ASCII * 1000).encode("utf-16-le"), r"got UTF-16 \(LE\)"),
        (ASCII.encode("utf-32-le"), "got something binary, with 60 NULs in its first 80 bytes"),
        (bytes(1 << 20), "got something binary, with 4096 NULs in its first 4096 bytes"),
    ],
)
def test_what_is_no_text_is_refused_by_what_it_is(content: bytes, said: str) -> None:
    with pytest.raises(InputError, match=f"f: expected text in UTF-8, {said}"):
        list(read_lines(io.BytesIO(content), name="f"))
    with pytest.raises(InputError, match=said):
        list(read_lines(io.BytesIO(content), name="f", skipped=[]))


@pytest.mark.parametrize("text", ["PAR1 is a receptor.\n", "BZh\n", "PKzip\n", "ORC\n", "PAREIDOLIA\n"])
def test_a_text_that_begins_like_another_file_is_text(text: str) -> None:
    assert list(read_lines(io.BytesIO(text.encode()), name="f")) == [text[:-1]]


def test_a_line_that_is_not_utf8_is_named_with_ways_on() -> None:
    content = b"fine\ncaf\xe9\n\xed\xa0\xbd\xed\xb8\x80\nlast"
    with pytest.raises(InputError, match=r"f, line 2: not UTF-8 at byte 4 of the line: convert .*iconv.*, or else$"):
        list(read_lines(io.BytesIO(content), name="f", way_on=", or else"))
    skipped: list[int] = []
    assert list(read_lines(io.BytesIO(content), name="f", skipped=skipped)) == ["fine", "last"]
    assert skipped == [2, 3]


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="none: cannot be read: No such file or directory"):
        file_lines(tmp_path / "none")
    with pytest.raises(FileError, match="cannot be read: Is a directory"):
        file_lines(tmp_path)
    # Reading at address 0 of this process gives EIO, as a broken disk does.
    with pytest.raises(FileError, match="mem: cannot be read: Input/output error: the device"):
        file_lines(Path("/proc/self/mem"))
