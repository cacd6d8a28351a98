"""Closing, forking, pickling, importing: what becomes of an encoder around its calls."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mexma_runtime
from mexma_runtime import Encoder, EncoderClosedError, InputError, UsageError
from mexma_runtime.bundle.bundle import Bundle

MakeBundle = Callable[..., Path]
PRELUDE = """
import multiprocessing, os, sys
from mexma_runtime import Encoder, MexmaError

def embed(encoder, results):
    try:
        results.put(("vector", encoder.encode("the cat").tolist(), os.getpid()))
    except MexmaError as error:
        results.put((type(error).__name__, str(error), os.getpid()))

def answer_of(method, encoder):
    context = multiprocessing.get_context(method)
    results = context.Queue()
    process = context.Process(target=embed, args=(encoder, results))
    process.start()
    answer = results.get(timeout=60)
    process.join(60)
    assert process.exitcode == 0, process.exitcode
    return answer
"""


def run_script(folder: Path, body: str, *arguments: str) -> str:
    script = folder / "script.py"
    script.write_text(PRELUDE + "\nif __name__ == '__main__':\n" + body)
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_use_after_fork_is_refused_with_the_reason_and_the_way_out(tmp_path: Path, bundle_folder: Path) -> None:
    body = """
    encoder = Encoder.load(sys.argv[1], n_threads=2)
    mine = encoder.encode("the cat").tolist()
    kind, said, child = answer_of("fork", encoder)
    assert kind == "EncoderClosedError", said
    assert f"loaded in process {os.getpid()} and does not work in its fork {child}" in said
    assert "'spawn'" in said
    assert encoder.encode("the cat").tolist() == mine
    print("refused")
"""
    assert run_script(tmp_path, body, str(bundle_folder)) == "refused\n"


def test_a_forked_child_may_close_its_copy_and_load_its_own(tmp_path: Path, bundle_folder: Path) -> None:
    body = """
    with Encoder.load(sys.argv[1], n_threads=2) as encoder:
        encoder.encode("the cat")
        child = os.fork()
    if child == 0:
        with Encoder.load(sys.argv[1], n_threads=2) as own:
            print(own.encode("the cat").shape, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print("parent done")
"""
    assert run_script(tmp_path, body, str(bundle_folder)) == "(8,)\nparent done\n"


def test_a_spawned_process_opens_the_bundle_again(tmp_path: Path, bundle_folder: Path) -> None:
    body = """
    encoder = Encoder.load(sys.argv[1], n_threads=1, dialect="portable")
    kind, vector, child = answer_of("spawn", encoder)
    assert (kind, vector) == ("vector", encoder.encode("the cat").tolist())
    assert child != os.getpid()
    print("embedded")
"""
    assert run_script(tmp_path, body, str(bundle_folder)) == "embedded\n"


def test_pickling_keeps_the_choices(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle_folder.parent)
    encoder = Encoder.load(bundle_folder.name, dialect="portable", n_threads=1, spinning=False)
    monkeypatch.chdir("/")

    again = pickle.loads(pickle.dumps(encoder))

    assert again.info == encoder.info
    np.testing.assert_array_equal(again.encode("the cat"), encoder.encode("the cat"))
    again.close()
    assert copy.copy(encoder).encode("the cat").shape == (8,)


def test_an_open_bundle_will_do(bundle_folder: Path) -> None:
    bundle = Bundle.open(bundle_folder)

    with Encoder.from_bundle(bundle, dialect="portable", n_threads=1) as encoder:
        assert encoder.info.engine == "portable.fp32"
        assert pickle.loads(pickle.dumps(encoder)).info == encoder.info


def test_use_after_close_is_refused(bundle_folder: Path) -> None:
    with Encoder.load(bundle_folder, n_threads=1) as encoder:
        vectors = encoder.encode_iter(["a"] * 3, window=1)
        next(vectors)
        ragged = encoder.tokenize(["a"]).ragged
    encoder.close()

    for attempt in (
        lambda: encoder.encode("a"),
        lambda: encoder.encode([]),
        lambda: encoder.encode_ids(ragged),
        lambda: list(encoder.encode_iter(["a"])),
        encoder.warmup,
        lambda: list(vectors),
    ):
        with pytest.raises(EncoderClosedError, match="was closed"):
            attempt()


def test_closing_while_others_encode_ends_them_cleanly(bundle_folder: Path) -> None:
    encoder = Encoder.load(bundle_folder, n_threads=1)
    started, ends = threading.Barrier(5), list[object]()

    def work() -> None:
        started.wait()
        try:
            while True:
                ends_with = encoder.encode(["a", "the cat", "zebra"])
                assert np.all(np.isfinite(ends_with))
        except EncoderClosedError as error:
            ends.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    encoder.close()
    for thread in threads:
        thread.join(20)

    assert len(ends) == 4


def test_loading_again_and_again_leaves_nothing_behind(bundle_folder: Path, resident_bytes: Callable[[], int]) -> None:
    def n_entries(folder: str) -> int:
        return len(list(Path(folder).iterdir()))

    def used() -> tuple[int, int, int]:
        gc.collect()
        return n_entries("/proc/self/task"), n_entries("/proc/self/fd"), resident_bytes()

    def cycle(n: int) -> None:
        for _ in range(n):
            with Encoder.load(bundle_folder, n_threads=2) as encoder:
                encoder.encode(["the cat", "a"] * 50)

    cycle(5)
    n_threads, n_files, n_bytes = used()
    cycle(40)

    after = used()
    assert after[0] <= n_threads
    assert after[1] <= n_files
    assert after[2] - n_bytes < 20e6


@pytest.mark.filterwarnings("ignore::mexma_runtime.TruncationWarning")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_what_was_loaded_is_not_opened_again(make_bundle: MakeBundle, backend: str) -> None:
    folder = make_bundle()
    texts = ["the cat", "a " * 5000, "zebra", "a" * 5000] * 200
    with Encoder.load(folder, backend=backend, dialect="portable", n_threads=2) as there:
        expected = there.encode(texts)
    encoder = Encoder.load(folder, backend=backend, dialect="portable", n_threads=2)
    shutil.rmtree(folder)

    np.testing.assert_array_equal(encoder.encode(texts), expected)


def test_importing_brings_little_and_prints_nothing() -> None:
    """NumPy, tokenizers and 46 modules of our own; whatever is for one use alone, GPUs among them, waits for it."""
    code = (
        "import json, sys; before = set(sys.modules); import mexma_runtime; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr == ""
    packages = Counter(name.partition(".")[0] for name in json.loads(done.stdout))
    assert packages.keys() - sys.stdlib_module_names == {"mexma_runtime", "numpy", "tokenizers"}
    assert packages["mexma_runtime"] <= 46


def test_an_encoder_that_outlives_the_modules_says_nothing(bundle_folder: Path) -> None:
    code = "import json, sys; from mexma_runtime import Encoder; json.encoder = Encoder.load(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(bundle_folder)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_every_public_name_is_there() -> None:
    assert all(hasattr(mexma_runtime, name) for name in mexma_runtime.__all__)


@pytest.mark.parametrize(
    "option",
    [
        *({"n_threads": value} for value in ("2", 2.5, True, [2])),
        *({"max_waiting": value} for value in ("3", None, 3.0)),
        *({name: []} for name in ("precision", "recipe", "dialect", "engine", "backend", "graphs", "attention")),
        {"device": None},
        {"spinning": 1},
        {"memory_limit": "1G"},
        {"max_whole_chars": None},
    ],
    ids=str,
)
def test_an_option_of_another_type_is_refused_by_name(bundle_folder: Path, option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(option))}: expected .*, got "):
        Encoder.load(bundle_folder, **option)


def test_what_an_option_may_be_is_told_as_it_is_written(bundle_folder: Path) -> None:
    wrong: dict[str, Any] = {"precision": 5}
    with pytest.raises(UsageError, match=r"precision: expected str \| None, got 5"):
        Encoder.load(bundle_folder, **wrong)
    for device in (b"cpu", [None]):
        with pytest.raises(UsageError, match="device: expected a str or several, got "):
            Encoder.load(bundle_folder, device=device)  # type: ignore[arg-type]


def test_an_argument_of_another_type_is_refused_by_name(bundle_folder: Path) -> None:
    options: dict[str, Any] = {"n_threads": np.int64(1)}
    counts: dict[str, Any] = {"batch_size": np.int64(1)}
    with Encoder.load(bundle_folder, **options) as encoder:
        arguments: list[dict[str, Any]] = [
            *({"batch_size": value} for value in ("3", 1.5, True)),
            *({"timeout": value} for value in ("1", float("nan"))),
            *({"cancel": value} for value in (True, object())),
            *({"truncate": value} for value in ("no", None)),
            {"normalize_embeddings": "no"},
            {"out": [1]},
        ]
        for argument in arguments:
            with pytest.raises(UsageError, match=f"{next(iter(argument))}: expected .*, got "):
                encoder.encode(["a"], **argument)
        with pytest.raises(InputError, match="expected an iterable of str, got NoneType"):
            encoder.encode_iter(None)  # type: ignore[arg-type]
        for window in ("2", 10**30):
            with pytest.raises(UsageError, match="window: expected 1 or more, got "):
                encoder.encode_iter(["a"], window=window)  # type: ignore[arg-type]
        assert encoder.encode(["a"], **counts).shape == (1, encoder.info.dim)


def test_an_option_that_does_not_exist_is_refused(bundle_folder: Path) -> None:
    misspelt: dict[str, Any] = {"threads": 2, "precison": "fp32"}
    with pytest.raises(TypeError, match="unknown options: precison, threads; there are precision, recipe"):
        Encoder.load(bundle_folder, **misspelt)
