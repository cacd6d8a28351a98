"""`mexma build`, through the command: a Triton repository made here; what plans need is refused by name."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import onnxruntime as ort
import pytest
import typer
from typer.testing import CliRunner

from mexma_export.cli.build import register_build
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.companions import COMPANIONS
from mexma_runtime.bundle.manifest import MANIFEST_NAME
from mexma_runtime.errors import MexmaError, MissingDependencyError, UsageError

needs_none = pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    app = typer.Typer()
    register_build(app)
    return app


def failure(app: typer.Typer, *words: str | Path) -> MexmaError:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(result.exception, MexmaError), result.output
    return result.exception


def test_a_bundle_becomes_a_repository_for_triton(app: typer.Typer, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    words = [str(tiny_bundle), "--target", "triton", "--out", str(out), "--precision", "fp32", "--name", "labse-like"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "fused.fp32 for Triton's onnxruntime backend; token ids in, vectors out" in result.stderr
    assert sorted(path.name for path in (out / "labse-like").iterdir()) == ["1", "config.pbtxt", "tokenizer.json"]
    (entry,) = [e for e in Bundle.open(tiny_bundle).manifest.engines if e.name == "fused.fp32"]
    files = {path.name for path in (out / "labse-like" / "1").iterdir()}
    assert files == {"model.onnx", *entry.weights}
    ort.InferenceSession(str(out / "labse-like" / "1" / "model.onnx"), providers=["CPUExecutionProvider"])


def test_the_bundle_stays_as_it_is(app: typer.Typer, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    words = [str(folder), "--target", "triton", "--out", str(tmp_path / "repository")]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--target", "triton"), "--out FOLDER is needed"),
        (("--target", "plan"), "--out FOLDER is needed"),
        (("--target", "tensorrt", "--out", "x"), "--out is for --target plan or triton, and tensorrt was asked for"),
        (
            ("--target", "triton", "--out", "x", "--profile", "latency:1"),
            "--profile is for --target tensorrt or plan or tensorrt-rtx, and ",
        ),
        (
            ("--target", "triton", "--out", "x", "--hardware-compatible", "ampere-plus"),
            "--hardware-compatible is for --target tensorrt or plan",
        ),
        (("--target", "triton", "--out", "x", "--name", "../../evil"), "--name: expected letters, digits"),
        (("--target", "triton", "--out", "x", "--name", ""), "--name: expected letters, digits"),
        (("--target", "tensorrt", "--capability", "8.9"), "--capability is for --target tensorrt-rtx"),
        (("--target", "plan", "--out", "x", "--over-tensorrt"), "--over-tensorrt is for --target triton"),
        (
            ("--target", "sentence-transformers", "--precision", "fp32"),
            "--precision is for --target tensorrt or plan or tensorrt-rtx or triton, and sentence-transformers was",
        ),
        (("--target", "sentence-transformers", "--device", "cuda"), "--device is for --target "),
        (
            ("--target", "sentence-transformers", "--engine", "fused.fp32", "--out", "x"),
            "--out is for --target plan or triton, and sentence-transformers was asked for: leave it out",
        ),
        (
            ("--target", "sentence-transformers", "--profile", "latency:1"),
            "--profile is for --target tensorrt or plan or tensorrt-rtx, and ",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: tuple[str, ...],
    said: str,
    app: typer.Typer,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    error = failure(app, tiny_bundle, *words)
    assert isinstance(error, UsageError)
    assert str(error).startswith(said)
    assert not list(tmp_path.iterdir())


def test_no_gpu_takes_the_place_of_a_cpu_that_was_asked_for(app: typer.Typer, tiny_bundle: Path) -> None:
    error = failure(app, tiny_bundle, "--target", "tensorrt", "--device", "cpu")
    assert "tensorrt on cpu is not in this version" in str(error)


@needs_none
@pytest.mark.parametrize(
    "words",
    [
        ("--target", "tensorrt"),
        ("--target", "plan", "--out", "x"),
        ("--target", "triton", "--out", "x", "--over-tensorrt"),
    ],
)
def test_without_tensorrt_nothing_is_begun(
    words: tuple[str, ...], app: typer.Typer, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = failure(app, tiny_bundle, *words)
    assert isinstance(error, MissingDependencyError)
    assert "pip install 'mexma-runtime[tensorrt]'" in str(error)
    assert not list(tmp_path.iterdir())
    assert not (tiny_bundle / "local").exists()


def older_bundle(bundle: Path, folder: Path) -> Path:
    """A copy of `bundle` as it was before schema 4."""
    shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns(*COMPANIONS))
    data = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    for name in ("companions", "similarity", "content_sha256"):
        del data[name]
    data["schema"] = 3
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST_NAME).write_text(json.dumps({**data, "content_sha256": digest}), encoding="utf-8")
    return folder


def test_an_older_bundle_becomes_a_model_of_sentence_transformers(
    app: typer.Typer, tiny_bundle: Path, tmp_path: Path
) -> None:
    folder = older_bundle(tiny_bundle, tmp_path / "older")
    before = Bundle.open(folder).manifest
    for _ in range(2):
        result = CliRunner().invoke(app, [str(folder), "--target", "sentence-transformers"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert "trust_remote_code=True) opens it" in result.stderr
    made = Bundle.open(folder, verify=True).manifest
    assert made == replace(before, companions=sorted(COMPANIONS))
    assert {name: (folder / name).read_bytes() for name in COMPANIONS} == {
        name: (tiny_bundle / name).read_bytes() for name in COMPANIONS
    }


def test_a_users_own_file_of_a_companions_name_stays(app: typer.Typer, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = older_bundle(tiny_bundle, tmp_path / "older")
    (folder / "config.json").write_text("mine", encoding="utf-8")
    error = failure(app, folder, "--target", "sentence-transformers")
    assert "config.json: bundle.json does not name it, so it is yours" in str(error)
    assert (folder / "config.json").read_text(encoding="utf-8") == "mine"


def test_no_folder_is_made_for_no_bundle(app: typer.Typer, tmp_path: Path) -> None:
    error = failure(app, tmp_path / "none", "--target", "sentence-transformers")
    assert "not a bundle: the folder does not exist" in str(error)
    assert not (tmp_path / "none").exists()


def test_a_checkpoint_is_no_bundle(app: typer.Typer, tiny_checkpoint: Path, tmp_path: Path) -> None:
    error = failure(app, tiny_checkpoint, "--target", "triton", "--out", tmp_path / "out")
    assert "not a bundle: the folder holds no bundle.json; `mexma export SOURCE --out" in str(error)
    assert not (tmp_path / "out").exists()
