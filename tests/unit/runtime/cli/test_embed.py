"""`mexma embed`: lines in, a file of vectors out, and whatever may come between."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from mexma_runtime import Encoder
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import ProductMode
from mexma_runtime.types import Vectors

MakeBundle = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]
COMMAND = [sys.executable, "-m", "mexma_runtime"]


def vectors_of(folder: Path, texts: list[str]) -> Vectors:
    with Encoder.load(folder) as encoder:
        return encoder.encode(texts)


def test_a_full_disk_ends_in_one_line_and_leaves_nothing(run: Run, bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("cat\n" * 4000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, hard))
    try:
        code, _, stderr = run("embed", tmp_path / "in.txt", "--bundle", bundle_folder, "-o", tmp_path / "out.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 10
    assert stderr.startswith(f"error: {tmp_path / 'out.npy'}: cannot be written: File too large: ")
    assert stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


@pytest.mark.parametrize("megabytes", [300, 450])
def test_a_limit_on_memory_ends_in_one_line(bundle_folder: Path, tmp_path: Path, megabytes: int) -> None:
    """The first is too small for the libraries, the other for what comes after, where they would abort."""
    (tmp_path / "in.txt").write_text("cat\n" * 4000)
    command = [
        *COMMAND,
        "embed",
        str(tmp_path / "in.txt"),
        "--bundle",
        str(bundle_folder),
        "-o",
        str(tmp_path / "out.npy"),
    ]
    limits = (megabytes << 20, resource.RLIM_INFINITY)

    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limits),
    )

    assert (done.returncode, done.stderr.count("\n")) == (9, 1), done.stderr
    assert re.match(r"error: this process may take only \d+ MB of memory more, .*`ulimit -v`", done.stderr)


def test_each_line_is_a_sentence(run: Run, bundle_folder: Path, tmp_path: Path) -> None:
    texts = ["the cat", "", "a\u2028dog", "x\x0by\x1cz", "\r", "\u00e9 zebra"]
    (tmp_path / "in.txt").write_bytes("\n".join(texts).encode() + b"\n")
    out = tmp_path / "out.npy"

    code, stdout, stderr = run("embed", tmp_path / "in.txt", "--bundle", bundle_folder, "-o", out)

    assert (code, stdout) == (0, "")
    assert "wrote 6 vectors of 8 numbers" in stderr
    np.testing.assert_allclose(np.load(out), vectors_of(bundle_folder, [*texts[:4], "", texts[5]]), atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.npy"]


def test_stdin_json_and_the_summary(bundle_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    command = [*COMMAND, "embed", "-", "--bundle", str(bundle_folder), "-o", str(out), "--normalize", "--json"]

    done = subprocess.run(command, input=b"the cat\nabcdefghijklmnopqrstuvwxyz", capture_output=True, check=True)

    summary = json.loads(done.stdout)
    assert (summary["n_sentences"], summary["dim"], summary["n_truncated"]) == (2, 8, 1)
    assert (summary["engine"], summary["output"]) == ("fused.fp32", str(out))
    assert b"1 of 2 texts have more than 16 tokens" in done.stderr
    np.testing.assert_allclose(np.linalg.norm(np.load(out), axis=1), 1, atol=1e-6)


def test_the_command_can_what_the_class_can(run: Run, bundle_folder: Path, tmp_path: Path) -> None:
    """The bundle's prompt `query` is `the `, and `passage` is empty."""
    (tmp_path / "in.txt").write_text("cat\ndog\n")
    out = tmp_path / "out.npy"

    def embed(*options: object) -> tuple[str, Vectors]:
        code, _, stderr = run("embed", tmp_path / "in.txt", "--bundle", bundle_folder, "-o", out, *options)
        assert code == 0, stderr
        return stderr, np.load(out)

    plain, prompted = (vectors_of(bundle_folder, [f"{prompt}cat", f"{prompt}dog"]) for prompt in ("", "the "))
    stderr, vectors = embed("--threads", 1, "--batch-size", 1, "--no-spinning")
    np.testing.assert_allclose(vectors, plain, atol=1e-6)
    assert "this model has prompts, and none was asked for: --prompt-name query" in stderr
    for options, expected in {
        ("--prompt-name", "query"): prompted,
        ("--prompt-name", "document"): plain,
        ("--prompt", "the "): prompted,
        ("--prompt", ""): plain,
    }.items():
        stderr, vectors = embed(*options)
        np.testing.assert_allclose(vectors, expected, atol=1e-6)
        assert "prompt" not in stderr
    (tmp_path / "in.txt").write_text("cat\n" + "b " * 20)
    code, _, stderr = run("embed", tmp_path / "in.txt", "--bundle", bundle_folder, "-o", out, "--no-truncate")
    assert code == 8
    assert f"{tmp_path / 'in.txt'}, line 2: more than 16 tokens" in stderr


def test_no_lines_give_no_rows(run: Run, bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").touch()

    code, _, _ = run("embed", tmp_path / "in.txt", "--bundle", bundle_folder, "-o", tmp_path / "out.npy")

    assert code == 0
    assert np.load(tmp_path / "out.npy").shape == (0, 8)


def test_more_lines_than_a_window(run: Run, bundle_folder: Path, tmp_path: Path) -> None:
    texts = [f"{'abc'[i % 3]} cat {'xy'[i % 2]}" for i in range(2500)]
    (tmp_path / "in.txt").write_text("\n".join(texts))

    run("embed", tmp_path / "in.txt", "--bundle", bundle_folder, "-o", tmp_path / "out.npy")

    vectors = np.load(tmp_path / "out.npy", mmap_mode="r")
    np.testing.assert_allclose(vectors, vectors_of(bundle_folder, texts), atol=1e-6)


def test_what_is_not_utf8_names_the_line_and_leaves_the_old_output(
    run: Run, bundle_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_bytes(b"fine\nalso fine\nbad \xff here\n")
    (tmp_path / "out.npy").write_text("old")

    code, _, stderr = run("embed", tmp_path / "in.txt", "--bundle", bundle_folder, "-o", tmp_path / "out.npy")

    assert code == 8
    assert stderr.startswith(f"error: {tmp_path / 'in.txt'}, line 3: not UTF-8 at byte 5 of the line: convert the file")
    assert stderr.endswith("or leave such lines out by --skip-bad-lines\n")
    assert (tmp_path / "out.npy").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_lines_that_are_not_utf8_can_be_left_out_and_are_listed(run: Run, bundle_folder: Path, tmp_path: Path) -> None:
    texts = [f"the cat {i}" for i in range(60)]
    bad = range(10, 60, 2)
    lines = [b"caf\xe9" if i in bad else text.encode() for i, text in enumerate(texts)]
    (tmp_path / "in.txt").write_bytes(b"\n".join(lines))
    out = tmp_path / "out.npy"
    words = ("embed", tmp_path / "in.txt", "--bundle", bundle_folder, "-o", out, "--skip-bad-lines", "--json")

    code, stdout, stderr = run(*words)

    summary = json.loads(stdout)
    assert (code, summary["n_sentences"], summary["skipped_lines"]) == (0, 35, [i + 1 for i in bad])
    kept = [text for i, text in enumerate(texts) if i not in bad]
    np.testing.assert_allclose(np.load(out), vectors_of(bundle_folder, kept), atol=1e-6)
    told = "warning: lines that are not UTF-8 were left out and have no row: 25, these: 11, 13, 15, "
    assert stderr.startswith(told)
    assert ", 49, ... (--json lists all)\n" in stderr
    (tmp_path / "in.txt").write_bytes(b"fine")
    assert json.loads(run(*words)[1])["skipped_lines"] == []
    (tmp_path / "in.txt").write_bytes(b"\xff\nfine\n\xff\n\xff\n" + b"b " * 20 + b"\n\xff\n")
    code, _, stderr = run(*words, "--no-truncate")
    assert (code, stderr.startswith(f"error: {tmp_path / 'in.txt'}, line 5: more than 16 tokens")) == (8, True)


def test_columns_are_embedded_whole_and_told(run: Run, bundle_folder: Path, tmp_path: Path) -> None:
    for name, is_told in (("in.tsv", True), ("in.txt", False)):
        (tmp_path / name).write_text("eng\tthe cat\n")
        _, _, stderr = run("embed", tmp_path / name, "--bundle", bundle_folder, "-o", tmp_path / "out.npy")
        assert ("each line is embedded whole, columns and all" in stderr) == is_told
        np.testing.assert_allclose(
            np.load(tmp_path / "out.npy"), vectors_of(bundle_folder, ["eng\tthe cat"]), atol=1e-6
        )


@pytest.mark.parametrize("output", ["-", "/dev/stdout"])
def test_vectors_go_down_a_pipe_whole(bundle_folder: Path, output: str, tmp_path: Path) -> None:
    command = [*COMMAND, "embed", "-", "--bundle", str(bundle_folder), "-o", output]

    done = subprocess.run(command, input=b"the cat\na dog\n", capture_output=True, check=True, cwd=tmp_path)

    vectors = np.load(io.BytesIO(done.stdout))
    np.testing.assert_allclose(vectors, vectors_of(bundle_folder, ["the cat", "a dog"]), atol=1e-6)
    assert b"wrote 2 vectors of 8 numbers to " in done.stderr
    assert not list(tmp_path.iterdir())
    bad = subprocess.run(command, input=b"fine\ncaf\xe9", capture_output=True, check=False)
    assert (bad.returncode, bad.stdout) == (8, b"")
    both = subprocess.run([*command, "--json"], input=b"a", capture_output=True, check=False)
    assert (both.returncode, both.stdout) == (2, b"")
    assert b"would both be on stdout: choose a file" in both.stderr


def test_a_reader_that_leaves_before_the_vectors_is_no_traceback(bundle_folder: Path) -> None:
    command = f"yes 'the cat' | head -20000 | {' '.join(COMMAND)} embed - --bundle {bundle_folder} -o - | head -c 10"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, check=False)
    assert (done.returncode, done.stdout[:6], done.stderr) == (1, b"\x93NUMPY", b"")


def test_standard_output_that_is_full_or_closed(bundle_folder: Path) -> None:
    info = " ".join([*COMMAND, "info", str(bundle_folder), "--json"])
    done = subprocess.run(["bash", "-c", f"{info} > /dev/full"], capture_output=True, text=True, check=False)
    assert done.returncode == 10
    assert (
        done.stderr
        == "error: standard output: cannot be written: No space left on device: free some, or choose another place\n"
    )
    embed = " ".join([*COMMAND, "embed", "-", "--bundle", str(bundle_folder), "-o", "-"])
    done = subprocess.run(["bash", "-c", f"echo a | {embed} >&-"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (10, "error: -: cannot be written: standard output is closed\n")
    done = subprocess.run(["bash", "-c", f"{embed} <&-"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: -: standard input is closed: name a file\n")


def test_closed_streams_are_done_without_or_told_before_the_work(bundle_folder: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "in.txt", tmp_path / "out.npy"
    text.write_text("the cat\n")
    embed = f"{sys.executable} -m mexma_runtime embed {text} --bundle {bundle_folder} -o {out}"
    for closed in ("2>&-", "<&- >&- 2>&-"):
        subprocess.run(["bash", "-c", f"{embed} {closed}"], check=True)
        assert np.load(out).shape == (1, 8)
        out.unlink()
    done = subprocess.run(["bash", "-c", f"{embed} --json >&-"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (10, "error: standard output: cannot be written: it is closed\n")
    assert list(tmp_path.iterdir()) == [text]


def test_a_file_is_looked_at_before_any_of_it_is_embedded(
    run: Run, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    text, words = tmp_path / "in.txt", ("--bundle", bundle_folder, "-o", tmp_path / "out.npy")
    monkeypatch.setattr(Encoder, "encode_iter", refuse)
    text.write_bytes(b"the cat\n" * 5000 + b"\xff\n")
    assert "line 5001: not UTF-8" in run("embed", text, *words)[2]
    text.write_bytes(b"\xff\n" + b"the cat\n" * 5000 + b"b " * 20)
    _, _, stderr = run("embed", text, *words, "--no-truncate", "--skip-bad-lines")
    assert stderr.startswith(f"error: {text}, line 5002: more than 16 tokens")


def test_a_pipe_that_gives_what_is_there_is_read_to_its_end(bundle_folder: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    command = [*COMMAND, "embed", "-", "--bundle", str(bundle_folder), "-o", str(tmp_path / "out.npy")]
    with subprocess.Popen(command, stdin=reading) as process, os.fdopen(writing, "wb") as pipe:
        os.close(reading)
        for piece in (b"", b"the cat\n" * 1000 + b"half a li", b"ne\n" + b"dog\n" * 50):
            time.sleep(0.5)
            pipe.write(piece)
            pipe.flush()
        pipe.close()
        assert process.wait(60) == 0
    assert np.load(tmp_path / "out.npy").shape == (1051, 8)


def test_a_file_that_shrinks_while_it_is_read_is_told(
    run: Run, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, encode_iter = tmp_path / "in.txt", Encoder.encode_iter
    text.write_bytes(b"the cat\n" * 5000)

    def shrink(self: Encoder, *texts: Any, **options: Any) -> Any:
        text.write_bytes(b"the cat\n" * 600)
        return encode_iter(self, *texts, **options)

    monkeypatch.setattr(Encoder, "encode_iter", shrink)
    code, _, stderr = run("embed", text, "--bundle", bundle_folder, "-o", tmp_path / "out.npy")
    assert (code, f"{text}: of 5000 lines 600 were left: it was changed" in stderr) == (8, True), stderr
    assert not (tmp_path / "out.npy").exists()


def test_a_file_of_the_bundle_is_no_output(run: Run, make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_bundle()
    (tmp_path / "in.txt").write_text("the cat\n")
    (tmp_path / "link").symlink_to(folder / "bundle.json")
    for output in (folder / "weights.bin", tmp_path / "link"):
        code, _, stderr = run("embed", tmp_path / "in.txt", "--bundle", folder, "-o", output)
        assert (code, "a file of the bundle itself" in stderr) == (2, True)
    Bundle.open(folder, verify=True)


def test_what_may_not_be_read_of_a_bundle_is_told(
    run: Run, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def refuse(self: Path, mode: str = "r", **how: Any) -> IO[Any]:
        if self.name == "weights.bin":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(self, mode, **how)

    monkeypatch.setattr(Path, "open", refuse)
    (tmp_path / "in.txt").write_text("the cat\n")
    code, _, stderr = run("embed", tmp_path / "in.txt", "--bundle", bundle_folder, "-o", tmp_path / "out.npy")
    assert (code, f"{bundle_folder / 'weights.bin'}: cannot be read: Permission denied" in stderr) == (10, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_leaves_no_half_file(bundle_folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out.npy"
    command = [*COMMAND, "embed", "-", "--bundle", str(bundle_folder), "-o", str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write(b"the cat\n" * 5000)
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for _ in range(3):  # somebody is impatient
            process.send_signal(number)
            time.sleep(0.005)
        _, stderr = process.communicate(timeout=60)

    assert process.returncode == 128 + number
    assert b"Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


def test_embed_insists_on_a_backend_and_a_recipe(
    run: Run, make_int8_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    bundle = make_int8_bundle(ProductMode.STATIC, bits=7)
    (tmp_path / "in.txt").write_text("the cat\na dog\n")
    command = ["embed", tmp_path / "in.txt", "--bundle", bundle.folder, "-o", tmp_path / "out.npy"]

    for backend in ("onnxruntime", "openvino"):
        _, stdout, _ = run(*command, "--backend", backend, "--recipe", "fast", "--json")
        assert json.loads(stdout)["backend"] == backend
    code, _, stderr = run(*command, "--recipe", "precise")
    assert code == 6
    assert "no int8 engine of recipe precise" in stderr


def test_embed_refuses_what_a_cpu_has_no_choice_of(run: Run, make_bundle: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("the cat\n")
    code, _, stderr = run(
        "embed", tmp_path / "in.txt", "--bundle", make_bundle(), "-o", tmp_path / "out.npy", "--attention", "flash"
    )
    assert code == 2
    assert "attention" in stderr
    assert not (tmp_path / "out.npy").exists()
