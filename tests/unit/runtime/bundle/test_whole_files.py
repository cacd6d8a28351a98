from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest

from mexma_runtime.bundle.whole_files import WholeFile, require_writable, write_whole
from mexma_runtime.errors import FileError

HOLD = """
import pathlib, sys, time
from mexma_runtime.bundle.whole_files import WholeFile
with WholeFile(pathlib.Path(sys.argv[1])) as file:
    file.write(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""
WRITE_TO_STDOUT = """
import pathlib, sys
from mexma_runtime.bundle.whole_files import write_whole
print("x")
write_whole(pathlib.Path(sys.argv[1]), b"y")
"""


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
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, small_files: int, piece: int) -> None:

    def write() -> None:
        with WholeFile(tmp_path / "file") as file:
            for _ in range(2 * small_files // piece + 1):
                file.write(bytes(piece))

    with pytest.raises(
        FileError, match=r"file: cannot be written: File too large: .*; nothing of it was kept"
    ) as caught:
        write()
    assert (caught.value.path, caught.value.errno) == (tmp_path / "file", errno.EFBIG)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(
    tmp_path: Path, holder: subprocess.Popen[bytes]
) -> None:
    path = tmp_path / "file"
    (theirs,) = tmp_path.glob(".file.*.part")
    (tmp_path / ".file.123.part").touch()  # as earlier versions called theirs
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


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    """In containers that share a folder both may be process 1."""
    path = tmp_path / "file"
    with WholeFile(path) as one, WholeFile(path) as two:
        one.write(b"one")
        two.write(b"two!")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    with WholeFile(path) as file:
        file.write(b"new")
        (part,) = tmp_path.iterdir()
    part.touch()  # as a killed process leaves it
    write_whole(path, b"newer")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"newer"]


def test_a_file_without_a_name_is_written_itself(tmp_path: Path) -> None:
    for is_gone in (False, True):
        with (tmp_path / "file").open("w+b") if is_gone else tempfile.TemporaryFile(dir=tmp_path) as file:
            (tmp_path / "file").unlink(missing_ok=True)
            file.write(b"a long old one")
            file.flush()
            path = Path(f"/dev/fd/{file.fileno()}")
            with pytest.raises(ZeroDivisionError), WholeFile(path) as whole:
                whole.write(bytes(1 // 0))
            assert path.read_bytes() == b"a long old one"
            write_whole(path, b"new")
            file.seek(0)
            assert file.read() == b"new"
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.EPERM, errno.EROFS])
def test_a_file_that_nobody_may_change_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """One that is immutable, or mounted read-only, in a folder that takes others."""
    path, opened = tmp_path / "file", os.open
    path.write_bytes(b"old")

    def refuse(name: Any, flags: int, *how: Any, **more: Any) -> int:
        if name == path and flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(number, os.strerror(number))
        return opened(name, flags, *how, **more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(FileError, match="file: cannot be written"):
        require_writable(path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_a_file_system_that_flushes_no_files_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int, descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    for number in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
        monkeypatch.setattr(os, "fsync", partial(refuse, number))
        with pytest.warns(RuntimeWarning, match="file: this file system flushes no files"):
            write_whole(tmp_path / "file", b"new")
    monkeypatch.setattr(os, "fsync", partial(refuse, errno.EIO))
    with pytest.raises(FileError, match="Input/output error"):
        write_whole(tmp_path / "file", b"newer")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"new"]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path, "Is a directory"),
        (tmp_path / "no" / "file", "No such file"),
        (tmp_path / ("x" * 300), "File name too long: choose a shorter name"),
    ):
        for write in (partial(write_whole, data=b""), require_writable):
            with pytest.raises(FileError, match=f"cannot be written: {said}"):
                write(path)
    assert not list(tmp_path.iterdir())


def test_what_may_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    for name in ("old", "new"):
        require_writable(tmp_path / name)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize("old", [b"old", None])
def test_a_link_is_followed(tmp_path: Path, old: bytes | None) -> None:
    there, link = tmp_path / "elsewhere" / "file", tmp_path / "link"
    there.parent.mkdir()
    if old:
        there.write_bytes(old)
    (tmp_path / "between").symlink_to("elsewhere")
    link.symlink_to("between/file")
    write_whole(link, b"new")
    assert link.readlink() == Path("between/file")
    assert there.read_bytes() == b"new"
    assert not there.is_symlink()
    assert [path.name for path in there.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o777])
def test_a_replaced_file_keeps_its_rights_from_the_first_byte(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(mode)
    with WholeFile(path):
        (part,) = tmp_path.glob(".file.*.part")
        assert stat.S_IMODE(part.stat().st_mode) == mode
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_new_file_has_the_rights_that_others_have(tmp_path: Path) -> None:
    write_whole(tmp_path / "ours", b"")
    (tmp_path / "theirs").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


@pytest.mark.skipif(os.getuid() != 0, reason="files are given away by root alone")
def test_root_leaves_a_replaced_file_to_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.chown(path, 1234, 4321)
    path.chmod(0o640)
    write_whole(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (1234, 4321, 0o640)


def test_the_reader_of_a_pipe_gets_the_whole_or_nothing(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with ThreadPoolExecutor(1) as pool:
        got = pool.submit(fifo.read_bytes)
        with WholeFile(fifo) as file:
            file.write(b"?" * 3)
            file.write(bytes(1 << 20))
            file.rewind()
            file.write(b"new")
        assert got.result(30) == b"new" + bytes(1 << 20)

        got = pool.submit(fifo.read_bytes)
        with pytest.raises(ZeroDivisionError), WholeFile(fifo) as file:
            file.write(bytes(1 // 0))
        assert got.result(30) == b""
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert list(tmp_path.iterdir()) == [fifo]


@pytest.mark.parametrize("name", ["-", "stdout", "/proc/self/fd/1"])
@pytest.mark.parametrize("is_file", [True, False])
def test_standard_output_goes_on_where_it_is(tmp_path: Path, name: str, is_file: bool) -> None:
    command = [sys.executable, "-c", WRITE_TO_STDOUT, name]
    log, link = tmp_path / "log", tmp_path / "stdout"
    log.write_bytes(b"w\n")
    link.symlink_to("/proc/self/fd/1")  # as /dev/stdout is
    if is_file:
        with log.open("ab") as file:
            subprocess.run(command, stdout=file, check=True, cwd=tmp_path)
        assert log.read_bytes() == b"w\nx\ny"
    else:
        assert subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=tmp_path).stdout == b"x\ny"
    assert sorted(tmp_path.iterdir()) == [log, link]
    assert link.is_symlink()


def device(folder: Path, name: str, minor: int) -> Path:
    """/dev/NAME; to root, who could destroy it, a copy."""
    if os.getuid():
        return Path("/dev") / name
    try:
        os.mknod(folder / name, stat.S_IFCHR | 0o666, os.makedev(1, minor))
        (folder / name).open("wb").close()
    except OSError:
        pytest.skip("no device can be made here")
    return folder / name


def test_devices_are_written_and_stay(tmp_path: Path) -> None:
    null, full = device(tmp_path, "null", 3), device(tmp_path, "full", 7)
    with WholeFile(null) as file:
        file.write(bytes(10))
        assert file.tell() == 10
        file.rewind()
        assert file.tell() == 0
    with pytest.raises(FileError, match="full: cannot be written: No space left on device: free some"):
        write_whole(full, b"x")
    assert all(stat.S_ISCHR(path.lstat().st_mode) for path in (null, full))


def test_a_file_in_a_folder_that_takes_no_other_is_written_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a long old one")
    number, rename, opened = path.stat().st_ino, Path.replace, Path.open

    def stay(reason: int, target: Path) -> Path:
        raise OSError(reason, os.strerror(reason))

    for reason in (errno.EBUSY, errno.EPERM):  # mounted by itself; another user's in a sticky folder
        monkeypatch.setattr(Path, "replace", partial(stay, reason))
        write_whole(path, b"new")
        assert (path.read_bytes(), path.stat().st_ino, list(tmp_path.iterdir())) == (b"new", number, [path])
        path.write_bytes(b"a long old one")
    monkeypatch.setattr(Path, "replace", rename)

    def refuse_parts(self: Path, mode: str = "r") -> IO[Any]:
        if self.suffix == ".part":
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(self, mode)

    monkeypatch.setattr(Path, "open", refuse_parts)
    write_whole(path, b"newer")
    assert (path.read_bytes(), path.stat().st_ino, list(tmp_path.iterdir())) == (b"newer", number, [path])
    with pytest.raises(FileError, match="other: cannot be written: Permission denied: give this user the right"):
        write_whole(tmp_path / "other", b"")


@pytest.mark.skipif(os.getuid() != 0, reason="file systems are mounted by root alone")
def test_a_disk_that_is_full_or_read_only(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        (disk / "file").write_bytes(b"old")
        with pytest.raises(FileError, match="file: cannot be written: No space left on device: free some"):
            write_whole(disk / "file", bytes(1 << 17))
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(FileError, match="file: cannot be written: Read-only file system: choose another place"):
            write_whole(disk / "file", b"new")
        assert (disk / "file").read_bytes() == b"old"
        assert len(list(disk.iterdir())) == 1
    finally:
        subprocess.run(["umount", disk], check=True)
