"""How a process ends, and what it leaves to its forks: each in a process of its own, with the real libraries."""

from __future__ import annotations

import _thread
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mexma_runtime import Encoder
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import ProductMode
from mexma_runtime.process import run_aside

MakeInt8Bundle = Callable[..., Bundle]
BACKENDS = ("onnxruntime", "openvino")
LOADED = """
import atexit, gc, os, signal, sys, threading, time
import numpy as np
from mexma_runtime import Encoder, EncoderClosedError
def load():
    return Encoder.load(sys.argv[1], backend=sys.argv[2], n_threads=2, dialect="portable")
texts = ["the cat", "zebra", "a"] * 100
e = load()
"""
FORKED = """
def fork(child):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    signal.alarm(60)  # a child that hangs ends by the signal
    try:
        child()
    except BaseException as error:
        print(type(error).__name__, error, file=sys.stderr)
        os._exit(7)
    sys.exit(5)
"""


def ended(
    folder: Path, backend: str, body: str, *, head: str = LOADED, env: dict[str, str] | None = None
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a Python that ran `head` and `body`."""
    command = [sys.executable, "-W", "ignore", "-c", head + body, str(folder), backend]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **(env or {})}
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("call", ["e.encode(texts)", "e.encode(texts[:3])", "list(e.encode_iter(texts))", "load()"])
def test_a_daemon_thread_in_a_call_ends_with_the_process(tiny_bundle: Path, backend: str, call: str) -> None:
    body = f"""
begun = threading.Semaphore(0)
def work():
    while True:
        {call}
        begun.release()
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
for _ in range(8):
    begun.acquire()
sys.exit(3)
"""
    assert ended(tiny_bundle, backend, body) == (3, "", "")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_texts", [3, 300])
def test_a_thread_that_outlives_the_main_one_embeds(bundle_folder: Path, backend: str, n_texts: int) -> None:
    body = f"""
def work():
    while threading.main_thread().is_alive():
        time.sleep(0.01)
    print(e.encode(texts[:{n_texts}]).shape, load().encode("a").shape, flush=True)
threading.Thread(target=work).start()
"""
    assert ended(bundle_folder, backend, body) == (0, f"({n_texts}, 8) (8,)\n", "")


def test_a_thread_that_outlives_the_main_one_loads_what_may_be_imported_then(bundle_folder: Path) -> None:
    body = """
def work():
    while threading.main_thread().is_alive():
        time.sleep(0.01)
    try:
        load().encode("a")
    except EngineUnavailableError as error:
        print(error)
    else:
        print("loaded")
threading.Thread(target=work).start()
"""
    head = LOADED.replace("e = load()", "from mexma_runtime import EngineUnavailableError")
    refusal = r"openvino is installed but cannot be imported: can't register atexit after shutdown\n"
    for backend, expected in (("onnxruntime", "loaded\n"), ("openvino", f"loaded\n|{refusal}")):
        code, out, errors = ended(bundle_folder, backend, body, head=head)
        assert (code, errors) == (0, "")
        assert re.fullmatch(expected, out)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_texts", [3, 300])
def test_what_runs_at_exit_embeds_whenever_it_was_registered(bundle_folder: Path, backend: str, n_texts: int) -> None:
    before = f"import atexit\natexit.register(lambda: print(e.encode(texts[:{n_texts}]).shape))\n"
    after = f"""
halves = e.encode_iter(texts, window=70)
next(halves)
atexit.register(lambda: print("first", e.encode(texts[:{n_texts}]).shape, len(list(halves))))
threading.Thread(target=lambda: [e.encode(texts) for _ in range(10_000)], daemon=True).start()
"""
    expected = f"first ({n_texts}, 8) 299\n({n_texts}, 8)\n"
    assert ended(bundle_folder, backend, after, head=before + LOADED) == (0, expected, "")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_call_after_the_end_is_refused(bundle_folder: Path, backend: str) -> None:
    body = """
class Late:
    def __init__(self):
        self.itself, self.encoder, self.error, self.write = self, e, EncoderClosedError, os.write
    def __del__(self):
        for texts in (["a"], ["a"] * 300):
            try:
                self.encoder.encode(texts)
            except self.error as error:
                self.write(1, f"{error}\\n".encode())
late = Late()
halves = [e.encode_iter(texts, window=70) for _ in range(2)]
for half in halves:
    next(half)
"""
    code, out, errors = ended(bundle_folder, backend, body)

    assert (code, errors) == (0, "")
    assert out == "the interpreter has ended, and the engine with it: embed before, or in atexit\n" * 2


def test_work_is_done_where_no_thread_can_be_had(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with Encoder.load(bundle_folder, n_threads=1) as encoder:
        texts = ["the cat", "a"] * 100
        expected = encoder.encode(texts)
        monkeypatch.setattr(_thread, "start_new_thread", refuse)
        assert run_aside(threading.get_ident).result() == threading.get_ident()
        np.testing.assert_array_equal(encoder.encode(texts), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("parent", "parallelism"), [("idle", "true"), ("busy", "true"), ("busy", None), ("closed", None)]
)
def test_a_fork_loads_an_encoder_of_its_own_in_place_of_its_parents(
    bundle_folder: Path, backend: str, parent: str, parallelism: str | None
) -> None:
    body = f"""
expected = e.encode(texts)
def work():
    while True:
        e.encode(texts)
if {parent!r} == "busy":
    for _ in range(2):
        threading.Thread(target=work, daemon=True).start()
if {parent!r} == "closed":
    e.close()
def child():
    global e
    e = None
    gc.collect()
    e = load()
    np.testing.assert_allclose(e.encode(texts), expected, atol=1e-6)
    assert e.encode(["a" * 5000] * 2).shape == (2, 8)
print(fork(child), fork(child), fork(lambda: None))
"""
    env = {"TOKENIZERS_PARALLELISM": parallelism} if parallelism else None
    code, out, errors = ended(bundle_folder, backend, body, head=LOADED + FORKED, env=env)

    assert (code, out) == (0, "5 5 5\n"), errors
    if parallelism:  # without it, tokenizers says in each child that it does without threads there
        assert errors == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fork_that_reads_its_parents_vectors_is_told(bundle_folder: Path, backend: str) -> None:
    body = """
vectors = e.encode_iter(texts, window=1)
next(vectors)
def child():
    try:
        list(vectors)
    except EncoderClosedError as error:
        assert "does not work in its fork" in str(error)
        os._exit(0)
print(fork(child), fork(lambda: None), len(list(vectors)))
"""
    assert ended(bundle_folder, backend, body, head=LOADED + FORKED) == (0, "0 5 299\n", "")


def test_a_fork_waits_for_what_is_under_way_and_nothing_begins_meanwhile(bundle_folder: Path) -> None:
    """OpenVINO's threads, copied in the middle of a batch, crashed every eighth child, or it hung."""
    body = """
from mexma_runtime.process import NATIVE
under_way, is_forking, n_begun = threading.Event(), threading.Event(), 0
def work():
    with NATIVE:
        under_way.set()
        assert is_forking.wait(30)
        load().close()  # what is under way may begin more
        time.sleep(0.2)
        globals().update(n_begun=1)
def late():
    is_forking.wait()
    time.sleep(0.1)  # the fork waits by now
    with NATIVE:
        globals().update(n_begun=n_begun + 10)
threads = [threading.Thread(target=target) for target in (work, late)]
for thread in threads:
    thread.start()
under_way.wait()
def child():
    assert n_begun == 1, n_begun
    with NATIVE:  # which waits for nothing here
        pass
os.register_at_fork(before=is_forking.set)
print(fork(child), fork(child) if n_begun == 1 else 5)
for thread in threads:
    thread.join()
print(n_begun)
"""
    assert ended(bundle_folder, "onnxruntime", body, head=LOADED + FORKED) == (0, "5 5\n11\n", "")


def test_a_fork_by_what_is_under_way_does_not_wait_for_itself(bundle_folder: Path) -> None:
    body = """
from mexma_runtime.process import NATIVE, run_aside
def child():
    assert load().encode(texts).shape == (300, 8)
    os._exit(5)
def from_within():
    with NATIVE:
        return fork(child)
print(from_within(), run_aside(from_within).result())
"""
    assert ended(bundle_folder, "onnxruntime", body, head=LOADED + FORKED) == (0, "5 5\n", "")


def test_a_fork_that_waits_too_long_is_told(bundle_folder: Path) -> None:
    body = """
import warnings
from mexma_runtime import process
process.LONGEST_PAUSE_S = 0.1
warnings.simplefilter("always")
under_way, may_end = threading.Event(), threading.Event()
def work():
    with process.NATIVE:
        under_way.set()
        may_end.wait()
thread = threading.Thread(target=work)
thread.start()
under_way.wait()
print(fork(lambda: None))
may_end.set()
thread.join()
print(fork(lambda: e.close()), e.encode("a").shape)
"""
    code, out, errors = ended(bundle_folder, "onnxruntime", body, head=LOADED + FORKED)

    assert (code, out) == (0, "5\n5 (8,)\n")
    assert errors.count("RuntimeWarning: this process forks in the middle of a call") == 1


def test_the_streams_of_a_fork_are_its_own(make_int8_bundle: MakeInt8Bundle) -> None:
    head = LOADED.replace('texts = ["the cat", "zebra", "a"] * 100', 'texts = ["the cat and zebra", "a cat"] * 100')
    body = """
expected = e.encode(texts)
def child():
    np.testing.assert_allclose(load().encode(texts), expected, atol=1e-6)
print(fork(child), end=" ")
e.close()
e = None
gc.collect()
print(fork(child))
"""
    folder = make_int8_bundle(ProductMode.STATIC, bits=7).folder

    assert ended(folder, "openvino", body, head=head + FORKED, env={"TOKENIZERS_PARALLELISM": "true"}) == (
        0,
        "5 5\n",
        "",
    )


def test_nothing_sends_telemetry(bundle_folder: Path, tmp_path: Path) -> None:
    """OpenVINO's package would by a thread, which forks, and keep an identity in the user's folder."""
    body = "print([thread.name for thread in threading.enumerate()], sys.modules['openvino_telemetry'].__name__)"
    env = {"HOME": str(tmp_path), "CI": "", "JENKINS_URL": ""}

    assert ended(bundle_folder, "openvino", body, env=env) == (0, "['MainThread'] openvino_telemetry\n", "")
    assert list(tmp_path.iterdir()) == []


def test_threads_that_load_first_at_once_do_not_wait_for_each_other(bundle_folder: Path) -> None:
    head = LOADED.replace("e = load()", "barrier = threading.Barrier(4)")
    body = """
def work():
    barrier.wait()
    load().encode(texts)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
    for _ in range(3):
        assert ended(bundle_folder, "openvino", body, head=head) == (0, "", "")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a fork does not know that it is one")
def test_a_fork_may_be_the_first_to_import_this_package(bundle_folder: Path) -> None:
    head = "import os, signal, sys\nfrom tokenizers import Tokenizer\n"
    body = """
from pathlib import Path
tokenizer = Tokenizer.from_file(str(next(Path(sys.argv[1]).glob("tokenizer*.json"))))
tokenizer.encode_batch(["the cat"] * 1000)
def child():
    from mexma_runtime import Encoder
    assert Encoder.load(sys.argv[1], backend=sys.argv[2], n_threads=1).encode(["the cat"] * 300).shape == (300, 8)
print(fork(child))
"""
    env = {"TOKENIZERS_PARALLELISM": "true"}
    assert ended(bundle_folder, "onnxruntime", body, head=head + FORKED, env=env) == (0, "5\n", "")


def test_the_thread_of_a_device_works_to_the_end(tmp_path: Path) -> None:
    head = "import atexit, threading, time\nfrom mexma_runtime.backends.gpu.backend import Worker\n"
    body = """
worker = Worker("cuda:0")
def work():
    while threading.main_thread().is_alive():
        time.sleep(0.01)
    print(worker.run(str, "outlived"), flush=True)
threading.Thread(target=work).start()
atexit.register(lambda: print(worker.run(str, "at exit")))
"""
    assert ended(tmp_path, "", body, head=head) == (0, "outlived\nat exit\n", "")
