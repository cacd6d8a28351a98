"""The commands, run in this process; their exit codes in a shell: tests/integration/test_export.py."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from mexma_export.cli.export import register_export
from mexma_export.cli.parity import register_parity
from mexma_export.cli.standin import register_standin
from mexma_export.corpus.sample import load_sample
from mexma_export.quantize.recipe import load_recipe
from mexma_runtime.backends import gpu_lines
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import MANIFEST_NAME
from mexma_runtime.errors import (
    EngineUnavailableError,
    FileError,
    MexmaError,
    MissingDependencyError,
    ParityError,
    SourceError,
    UsageError,
)


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    app = typer.Typer()
    for register in (register_export, register_standin, register_parity):
        register(app)
    return app


def run(app: typer.Typer, *words: str | Path) -> tuple[str, str]:
    """stdout and stderr of a command that succeeds."""
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def failure(app: typer.Typer, *words: str | Path) -> MexmaError:
    """The error that a command ends with."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(result.exception, MexmaError), result.output
    return result.exception


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("one\ntwo words\nand a third sentence\n", encoding="utf-8")
    return path


def test_export_writes_both_precisions_and_dialects_unless_asked(
    app: typer.Typer, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out, _ = run(app, "export", tiny_checkpoint, "--out", tmp_path / "all", "--skip-parity")
    assert "engines: fused.fp16, fused.fp32, packed.fp16, packed.fp32, portable.fp16, portable.fp32" in out
    words = ("--precision", "fp16", "--dialect", "portable", "--skip-parity", "--json")
    out, err = run(app, "export", tiny_checkpoint, "--out", tmp_path / "one", *words)
    printed = json.loads(out)
    assert [engine["name"] for engine in printed["manifest"]["engines"]] == ["portable.fp16"]
    assert printed["judged"] == printed["refused"] == []
    assert err == ""
    assert len(Bundle.open(tmp_path / "one", verify=True).manifest.engines) == 1


def test_the_help_of_export_says_what_is_required(app: typer.Typer) -> None:
    assert "Required: the bundle's" in run(app, "export", "--help")[0]


def test_export_warns_aloud(app: typer.Typer, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))
    (folder / "modules.json").unlink()
    error = failure(app, "export", folder, "--out", tmp_path / "out", "--skip-parity")
    assert "say --pooling cls or --pooling mean" in str(error)
    words = ("--pooling", "cls", "--precision", "fp32", "--skip-parity", "--json")
    out, err = run(app, "export", folder, "--out", tmp_path / "out", *words)
    assert err.startswith("warning: this checkpoint has no modules.json, so sentence-transformers mean-pools it")
    assert json.loads(out)["warnings"] == [err.removeprefix("warning: ").strip()]


def test_what_cannot_be_meant_is_refused(app: typer.Typer, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for words in (
        ("--recipe", "fast"),
        ("--calibration", "x"),
        ("--activation", "int8"),
        ("--min-cosine", "0.9"),
        ("--max-float-share", "0.1"),
        ("--seed", "0"),
    ):
        error = failure(app, "export", tiny_checkpoint, "--out", tmp_path / "out", *words)
        assert isinstance(error, UsageError)
        assert f"{words[0]}" in str(error)
        assert str(error).endswith("for int8 and fp8 only: add --precision int8")
    assert isinstance(failure(app, "export", tmp_path / "none", "--out", tmp_path / "out"), SourceError)
    result = CliRunner().invoke(app, ["export", str(tiny_checkpoint), "--out", "x", "--precision", "int4"])
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words", [(), ("--target", "triton", "--out", "x"), ("--over-tensorrt",), ("--profile", "latency:1", "--name", "m")]
)
def test_what_is_built_of_a_bundle_is_told_its_command(
    words: tuple[str, ...],
    app: typer.Typer,
    tiny_bundle: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = str(failure(app, "export", tiny_bundle, *words))
    assert f"mexma build {tiny_bundle} --target tensorrt, plan or triton" in said
    said = str(failure(app, "export", tiny_checkpoint, *words))
    assert ("mexma build BUNDLE --target tensorrt, plan or triton" in said) == bool(words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--device", "nonsense"), "device: expected 'cpu', 'cuda' or 'cuda:N', got 'nonsense'"),
        (("--device", "cuda", "--skip-parity"), "device: cuda is where engines are judged: leave out --skip-parity"),
        (("--precision", "fp8", "--recipe", "fast", "--recipe", "tensorrt"), "and for the others --precision int8"),
    ],
)
def test_what_would_have_no_effect_is_refused_before_the_work(
    words: tuple[str, ...], said: str, app: typer.Typer, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    error = failure(app, "export", tiny_checkpoint, "--out", tmp_path / "out", *words)
    assert isinstance(error, UsageError)
    assert said in str(error)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(bool(gpu_lines()), reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_told_before_the_work(
    app: typer.Typer, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    error = failure(app, "export", tiny_checkpoint, "--out", tmp_path / "out", "--device", "cuda")
    assert isinstance(error, EngineUnavailableError | MissingDependencyError)
    assert not list(tmp_path.iterdir())


def test_wishes_for_int8_are_checked_before_the_work(app: typer.Typer, tiny_checkpoint: Path, tmp_path: Path) -> None:
    words = ("export", tiny_checkpoint, "--out", tmp_path / "out", "--precision", "int8")
    for more, said in (
        (("--recipe", "slow"), "recipe 'slow': neither a file nor one of fast, precise"),
        (("--calibration", tmp_path / "none"), "none: cannot be read: No such file"),
        (("--min-cosine", "1"), "min_cosine: expected a number between 0 and 1"),
        (("--max-float-share", "0.2"), "bounds what --min-cosine leaves in float: give --min-cosine too"),
        (("--min-cosine", "0.9", "--max-float-share", "2"), "max_float_share: expected a number from 0 to 1"),
        (("--min-cosine", "0.99", "--skip-parity"), "leave out --skip-parity, or --min-cosine"),
    ):
        error = failure(app, *words, *more)
        assert isinstance(error, (FileError, UsageError))
        assert said in str(error)
    assert not (tmp_path / "out").exists()


def test_export_writes_int8_by_recipes(app: typer.Typer, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A shipped one by its name, a user's by its file."""
    recipe = {**load_recipe("precise").to_json(), "name": "mine", "smoothquant_alphas": [0.5]}
    file, calibration = tmp_path / "mine.json", tmp_path / "mine.tsv"
    file.write_text(json.dumps(recipe), encoding="utf-8")
    calibration.write_text("".join(f"{line.lang}\t{line.text}\n" for line in load_sample()[:120]), encoding="utf-8")
    words = ("--precision", "int8", "--dialect", "fused", "--skip-parity", "--json", "--seed", "7")
    out, _ = run(
        app,
        *("export", tiny_checkpoint, "--out", tmp_path / "out", *words),
        *("--recipe", "fast", "--recipe", file, "--calibration", calibration, "--activation", "int8"),
    )
    engines = json.loads(out)["manifest"]["engines"]
    assert [engine["name"] for engine in engines] == ["fused.int8.fast.int8", "fused.int8.mine.int8"]
    for engine in engines:
        assert engine["quantization"]["seed"] == 7
        assert engine["quantization"]["calibration"] == "mine.tsv"
    assert len(Bundle.open(tmp_path / "out", verify=True).manifest.engines) == 2


@pytest.mark.parametrize("command", ["export", "parity"])
def test_a_missing_package_is_named(app: typer.Typer, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    words = ["export", "x", "--out", "y"] if command == "export" else ["parity", "--bundle", "x", "--reference", "y"]
    error = failure(app, *words)
    assert isinstance(error, MissingDependencyError)
    assert "safetensors is not installed" in str(error)
    assert "mexma-runtime[export]" in str(error)


def test_standin_writes_a_checkpoint(app: typer.Typer, tmp_path: Path) -> None:
    out, err = run(app, "standin", "tiny", "--out", tmp_path / "a")
    assert out == ""
    assert "random weights, for speed, size and tests, never for quality" in err
    run(app, "standin", "tiny", "--out", tmp_path / "b", "--seed", "1", "--outliers")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] != weights[1]
    assert isinstance(failure(app, "standin", "tiny", "--out", tmp_path / "a"), UsageError)


def test_parity_tells_and_reports(
    app: typer.Typer, tiny_checkpoint: Path, tiny_bundle: Path, corpus: Path, tmp_path: Path
) -> None:
    words = ("parity", "--bundle", tiny_bundle, "--reference", tiny_checkpoint, "--corpus", corpus)
    report = tmp_path / "report.json"
    out, err = run(app, *words, "--precision", "fp32", "--report", report, "--json")
    assert json.loads(out) == json.loads(report.read_text(encoding="utf-8"))
    assert [engine["engine"] for engine in json.loads(out)["engines"]] == ["fused.fp32", "portable.fp32"]
    assert err == ""
    out, _ = run(app, *words)
    assert "corpus.txt, 3 sentences" in out
    assert "fused.fp16, worst sentences:" in out


def test_parity_certifies_where_asked_to(
    app: typer.Typer, tiny_checkpoint: Path, packed_bundle: Path, corpus: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(packed_bundle, tmp_path / "bundle"))
    words = ("parity", "--bundle", bundle, "--reference", tiny_checkpoint, "--corpus", corpus)
    before = (bundle / "bundle.json").read_bytes()
    run(app, *words, "--json")
    assert (bundle / "bundle.json").read_bytes() == before
    _, err = run(app, *words, "--certify", "--json")
    assert err == "certificates kept: fused.fp32\n"
    fused, packed = Bundle.open(bundle).manifest.engines
    assert [certificate.corpus for certificate in fused.certificates] == ["corpus.txt"]
    assert packed.certificates == []
    assert "CUDAExecutionProvider was asked for" in str(failure(app, *words, "--device", "cuda"))


def test_parity_fails_where_an_engine_does(
    app: typer.Typer, tiny_checkpoint: Path, corpus: Path, tmp_path: Path
) -> None:
    """An engine that was published unjudged: fp16 rounds its last LayerNorm coarsely."""
    folder, out = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny")), tmp_path / "out"
    tensors = load_file(folder / "model.safetensors")
    for part in ("weight", "bias"):
        tensors[f"encoder.layer.2.output.LayerNorm.{part}"] *= np.float32(1e-7)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    run(app, "export", folder, "--out", out, "--skip-parity", "--dialect", "fused")
    words = ("parity", "--bundle", out, "--reference", folder, "--corpus", corpus)
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(result.exception, ParityError)
    assert str(result.exception).startswith("fused.fp16: cosine_min: expected >= ")
    assert "REFUSED" in result.stdout


def test_parity_mines_and_correlates(
    app: typer.Typer, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """One folder as corpus and as bitext; with the same text on both sides a sentence finds itself."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for language in ("deu", "eng"):
        (folder / f"{language}.txt").write_text("one\ntwo words\nand a third\n", encoding="utf-8")
    sts = tmp_path / "sts.tsv"
    sts.write_text("score\ta\tb\n5\tone\tone\n1\tone\tand a third\n", encoding="utf-8")
    words = ("parity", "--bundle", tiny_bundle, "--reference", tiny_checkpoint, "--precision", "fp32")
    tasks = ("--corpus", folder, "--mining", folder, "--sts", sts)
    printed = json.loads(run(app, *words, *tasks, "--json")[0])
    assert printed["corpus"]["languages"] == {"deu": 3, "eng": 3}
    for engine in printed["engines"]:
        assert [*engine["by_language"]] == ["deu", "eng"]
        assert engine["mining"]["mean"]["engine_error_rate"] == 0
        assert engine["mining"]["pairs"][0]["n_sentences"] == 3
        assert engine["sts"]["engine"] == pytest.approx(1)
    out, _ = run(app, *words, *tasks, "--mining-pivot", "deu", "--mining-lines", "2", "--by", "length")
    assert "eng-deu" in out
    assert "fused.fp32 by length" in out
    assert "Spearman, sts.tsv: 2 pairs" in out


def test_bad_material_is_said_before_the_work(app: typer.Typer, corpus: Path, tmp_path: Path) -> None:
    words = ("parity", "--bundle", tmp_path / "none", "--reference", tmp_path / "none")
    for option in ("--mining-pivot", "--mining-lines"):
        assert "belong to --mining FOLDER" in str(failure(app, *words, option, "3"))
    assert "--mining-lines: expected 2 or more" in str(
        failure(app, *words, "--mining", tmp_path, "--mining-lines", "1")
    )
    assert "line 1: expected score TAB" in str(failure(app, *words, "--sts", corpus))
    assert "cannot be read: No such file" in str(failure(app, *words, "--corpus", tmp_path / "none"))


def test_a_report_that_cannot_be_written_is_said_before_the_work(
    app: typer.Typer, corpus: Path, tmp_path: Path
) -> None:
    words = ("parity", "--bundle", tmp_path / "none", "--reference", tmp_path / "none", "--corpus", corpus, "--report")
    for report, said in (
        (tmp_path / "none" / "report.json", "cannot be written: No such file"),
        (tmp_path, "cannot be written: Is a directory"),
        (corpus / "below", "cannot be written: Not a directory"),
    ):
        error = failure(app, *words, report)
        assert isinstance(error, FileError)
        assert said in str(error)
    for stdout in ("-", "/dev/stdout"):
        assert "--json prints the same on stdout" in str(failure(app, *words, stdout))


def test_certificates_that_cannot_be_kept_are_said_before_the_work(
    app: typer.Typer, tiny_bundle: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    for path in (folder / MANIFEST_NAME, folder):
        path.chmod(0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("this user writes everywhere")
    error = failure(app, "parity", "--bundle", folder, "--reference", tmp_path / "none", "--certify")
    assert isinstance(error, FileError)
    assert "bundle.json: cannot be written" in str(error)
