from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mexma_runtime.bundle.whole_files import WholeFile, write_whole
from mexma_runtime.errors import UsageError

HOLD = """
import pathlib, sys, time
from mexma_runtime.bundle.whole_files import WholeFile
with WholeFile(pathlib.Path(sys.argv[1])) as file:
    file.write(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def small_disk() -> Iterator[int]:
    """No file of this process may grow past so many bytes; Python ignores the signal, and writing fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield 1 << 16
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is writing `file`."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "file")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        yield process
        process.kill()


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    with WholeFile(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_raises_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    with pytest.raises(ZeroDivisionError), WholeFile(path) as file:
        file.write(bytes(1 // 0))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("piece", [1 << 10, 1 << 18])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, small_disk: int, piece: int) -> None:

    def write() -> None:
        with WholeFile(tmp_path / "file") as file:
            for _ in range(2 * small_disk // piece + 1):
                file.write(bytes(piece))

    with pytest.raises(UsageError, match=r"file: cannot be written: File too large; nothing of it was kept"):
        write()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(
    tmp_path: Path, holder: subprocess.Popen[bytes]
) -> None:
    path = tmp_path / "file"
    theirs = tmp_path / f".file.{holder.pid}.part"
    others = [tmp_path / name for name in (".file.notes.part", ".file.1.parts", ".other.1.part", "file.1.part")]
    for other in others:
        other.touch()
    write_whole(path, b"ours")
    assert theirs.exists()

    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert theirs.exists()
    write_whole(path, b"ours")

    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: it is a folder"):
        write_whole(tmp_path, b"")
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        write_whole(tmp_path / "no" / "file", b"")
