from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from mexma_runtime.backends import has_gpu_driver
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.companions import MODULES, with_companions, write_companions
from mexma_runtime.bundle.manifest import MANIFEST_NAME, Certificate, ProductMode

MakeBundle = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]
COMMAND = [sys.executable, "-m", "mexma_runtime"]


def test_no_memory_is_told_as_such(run: Run, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mexma_runtime.cli import tables

    monkeypatch.setattr(tables, "show_bundle", lambda *_, **__: np.empty(1 << 60, dtype=np.uint8))

    code, _, stderr = run("info", bundle_folder)

    assert code == 9
    assert stderr.startswith("error: out of memory: Unable to allocate 1.00 EiB")


def test_errors_are_one_line_with_their_own_exit_code(run: Run, bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a")
    embed = ("embed", tmp_path / "in.txt", "--bundle", bundle_folder, "-o", tmp_path / "out.npy")
    cases = [
        (("info", tmp_path / "nowhere"), 5, "not a bundle: the folder does not exist"),
        ((*embed, "--precision", "int8"), 6, "no int8 engine"),
        ((*embed, "--precision", "fp64"), 2, "precision: expected one of fp32, fp16, int8"),
        (("embed", tmp_path / "none.txt", *embed[2:]), 10, "none.txt: cannot be read: No such file"),
        (("embed", tmp_path, *embed[2:]), 10, "cannot be read: Is a directory"),
        (("embed", "/proc/self/mem", *embed[2:]), 10, "mem: cannot be read: Input/output error: the device"),
        ((*embed[:-1], tmp_path / "no" / "out.npy"), 10, "out.npy: cannot be written: No such file"),
        ((*embed[:-1], tmp_path), 10, "cannot be written: Is a directory"),
    ]
    for arguments, expected_code, said in cases:
        code, stdout, stderr = run(*arguments)
        assert (code, stdout) == (expected_code, "")
        assert stderr.startswith("error: ")
        assert said in stderr
        assert stderr.count("\n") == 1


def test_what_may_not_be_read_or_written_is_one_line_too(run: Run, bundle_folder: Path, tmp_path: Path) -> None:
    text, closed, output = tmp_path / "in.txt", tmp_path / "closed", tmp_path / "out.npy"
    text.write_text("a")
    closed.mkdir(0)
    output.touch(0o200)
    if os.access(closed, os.R_OK):
        pytest.skip("this user reads everything")
    code, _, stderr = run("info", closed)
    assert code == 10
    assert stderr.startswith(f"error: {closed / MANIFEST_NAME}: cannot be read: Permission denied: ")
    code, _, stderr = run("embed", text, "--bundle", bundle_folder, "-o", closed / "out.npy")
    assert code == 10
    assert stderr.startswith(f"error: {closed / 'out.npy'}: cannot be written: Permission denied: give this user")
    assert run("embed", text, "--bundle", bundle_folder, "-o", output)[0] == 0
    assert stat.S_IMODE(output.stat().st_mode) == 0o200
    text.chmod(0)
    code, _, stderr = run("embed", text, "--bundle", bundle_folder, "-o", output)
    assert (code, stderr.startswith(f"error: {text}: cannot be read: Permission denied: ")) == (10, True)


def test_what_nobody_expected_is_still_one_line(run: Run, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mexma_runtime.cli.tables", None)

    code, _, stderr = run("info", bundle_folder)

    assert code == 70
    assert stderr.startswith("error: ModuleNotFoundError: ")
    assert stderr.endswith("(MEXMA_TRACEBACK=1 shows where)\n")


def test_a_file_that_nobody_looked_after_is_told_by_its_name(
    run: Run, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mexma_runtime.cli import tables

    def fail(*_: object, **__: object) -> None:
        Path("/proc/none").read_bytes()

    monkeypatch.setattr(tables, "show_bundle", fail)
    assert run("info", bundle_folder) == (10, "", "error: /proc/none: No such file or directory\n")
    monkeypatch.setenv("MEXMA_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        run("info", bundle_folder)


def test_a_reader_that_leaves_early_is_no_error(bundle_folder: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m mexma_runtime info {bundle_folder} --json | true"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stderr == ""


def test_info_shows_what_the_bundle_holds(run: Run, bundle_folder: Path) -> None:
    code, stdout, _ = run("info", bundle_folder, "--verify")

    assert code == 0
    for said in ("by-hand/tiny", "mean (by hand)", "engine fused.fp32", "engine portable.fp32", "onnxruntime >= 1.16"):
        assert said in stdout
    document = json.loads(run("info", bundle_folder, "--json")[1])
    assert document["manifest"]["model"]["id"] == "by-hand/tiny"
    assert document["weights_verified"] is False


def test_info_shows_how_an_engine_was_quantized_and_judged(run: Run, make_int8_bundle: Callable[..., Bundle]) -> None:
    bundle = make_int8_bundle(ProductMode.STATIC, bits=7)
    certificates = [
        Certificate(
            reference="PyTorch",
            corpus="sample",
            corpus_sha256="0" * 64,
            backend=backend,
            provider="CPU",
            processor="a processor (avx2)",
            certified=True,
            note=None,
            figures={"cosine_min": 0.99},
        )
        for backend in ("onnxruntime 1.31.1", "openvino 2026.4.1")
    ]
    engine = dataclasses.replace(bundle.manifest.engines[0], certificates=certificates)
    manifest = dataclasses.replace(bundle.manifest, engines=[engine])
    (bundle.folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")

    _, stdout, _ = run("info", bundle.folder)

    assert (
        "recipe fast, activations uint8, weights 7 bits; products: 1 static; calibrated on 1 texts of by han" in stdout
    )
    for certificate in certificates:
        assert f"least cosine 0.99 to PyTorch on sample; {certificate.backend} on a processor (avx2)\n" in stdout


def test_info_tells_what_opens_the_bundle(run: Run, make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    alone = "opens in     Encoder alone (`mexma build BUNDLE --target sentence-transformers` adds what "
    assert alone in run("info", folder)[1]
    manifest = with_companions(Bundle.open(folder).manifest)
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    write_companions(folder, manifest)
    assert "opens in     Encoder and sentence-transformers\n" in run("info", folder)[1]
    (folder / MODULES).unlink()
    assert alone in run("info", folder)[1]


def test_info_verifies_the_weights_when_asked(run: Run, make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    weights = folder / "weights.bin"
    weights.write_bytes(bytes(weights.stat().st_size))

    assert run("info", folder)[0] == 0
    code, _, stderr = run("info", folder, "--verify")
    assert code == 5
    assert f"error: {weights}: expected sha256" in stderr


def test_doctor_tells_what_works(run: Run) -> None:
    code, stdout, _ = run("doctor")
    document = json.loads(run("doctor", "--json")[1])

    assert code == 0
    assert f"onnxruntime on cpu: works, {onnxruntime.__version__}" in stdout
    assert "openvino on cpu: works, 20" in stdout
    assert document["versions"]["numpy"] == np.__version__
    assert document["attention"] == {}
    assert document["hardware"]["n_logical_cpus"] == len(os.sched_getaffinity(0))


def test_doctor_looks_at_gpus_alone(run: Run, bundle_folder: Path) -> None:
    document = json.loads(run("doctor", "--json")[1])
    if document["gpus"]:
        pytest.skip("this machine has a GPU, and its own tests")
    if has_gpu_driver() is False:
        told = [status["problem"] for status in document["backends"] if status["device"] == "cuda"]
        assert [problem.partition(":")[0] for problem in told] == ["no NVIDIA GPU here"] * 3
    code, _, stderr = run("doctor", "--bundle", bundle_folder)
    assert (code, "CUDAExecutionProvider was asked for" in stderr) == (6, True)
    code, _, stderr = run("doctor", "--bundle", bundle_folder, "--tune", "--device", "cpu")
    assert (code, "--tune measures GPUs, and 'cpu' is none" in stderr) == (2, True)
    code, _, stderr = run("doctor", "--tune")
    assert (code, "name it with --bundle" in stderr) == (2, True)
    code, _, stderr = run("embed", "-", "--bundle", bundle_folder, "-o", "x.npy", "--device", "cuda")
    assert (code, "CUDAExecutionProvider was asked for" in stderr) == (6, True)


def test_the_version_and_the_commands(run: Run) -> None:
    assert run("--version")[1].startswith("mexma-runtime")
    assert all(name in run("--help")[1] for name in ("embed", "info", "doctor"))
    assert run("embed")[0] == 2
    assert run("nonsense")[0] == 2


def test_other_packages_add_commands_and_a_broken_one_does_no_harm(
    run: Run, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "addition.py").write_text(
        textwrap.dedent("""
            def register(app):
                @app.command("greet")
                def greet() -> None:
                    print("good day")
        """)
    )
    metadata = tmp_path / "addition-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: addition\nVersion: 1.0\n")
    entries = "[mexma.commands]\ngreet = addition:register\nbroken = no_such_module:register\n"
    (metadata / "entry_points.txt").write_text(entries)
    monkeypatch.syspath_prepend(tmp_path)

    code, stdout, stderr = run("greet")

    assert (code, stdout) == (0, "good day\n")
    assert "mexma broken is not available: No module named 'no_such_module'" in stderr
    assert run("info", bundle_folder)[0] == 0
