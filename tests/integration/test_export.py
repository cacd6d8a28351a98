"""Checkpoint to vectors, as a user does it: the command in its own process, the bundle in this one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer

from mexma_export.bundle.pipeline import export
from mexma_export.bundle.request import ExportRequest
from mexma_export.bundle.staging import Staging
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.parity.figures import compare, worst_rows
from mexma_export.parity.gate import UNCERTIFIED_OWN
from mexma_export.parity.reference import load_reference
from mexma_runtime import Encoder
from mexma_runtime.bundle.bundle import Bundle, sha256_of
from mexma_runtime.bundle.companions import COMPANIONS
from mexma_runtime.bundle.manifest import MANIFEST_NAME
from mexma_runtime.errors import TruncationWarning
from mexma_runtime.types import PADDED_DIALECTS, Dialect, Pooling, Precision, Vectors

TEXTS = [
    "A short sentence.",
    "",
    " ",
    "word " * 600,
    "Ein Satz auf Deutsch; \u4e00\u53e5\u8bdd; \u0645\u0631\u062d\u0628\u0627 \U0001f469\u200d\U0001f680",
    "a <pad> in the middle </s> <s> of a text",
    "NUL \0 within",
    *("word " * n for n in (508, 509, 510, 511, 512)),
]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far vectors of one precision may be from PyTorch's in fp32, entries being of order 1."""

    cosine_min: float
    max_abs_difference: float


TOLERANCES = {
    Precision.FP32: Tolerance(cosine_min=0.999999, max_abs_difference=1e-4),
    Precision.FP16: Tolerance(cosine_min=0.99999, max_abs_difference=1e-2),
}


def assert_same(vectors: Vectors, expected: Vectors, precision: Precision) -> None:
    tolerance, figures = TOLERANCES[precision], compare(vectors, expected)
    message = f"worst of {len(TEXTS)} texts: {worst_rows(vectors, expected, 1)}"
    assert figures.cosine_min >= tolerance.cosine_min, message
    assert figures.max_abs_difference <= tolerance.max_abs_difference, message


def encode(bundle: Path, *, precision: Precision = Precision.FP32, dialect: Dialect = Dialect.FUSED) -> Vectors:
    with Encoder.load(bundle, precision=precision, dialect=dialect) as encoder, pytest.warns(TruncationWarning):
        return encoder.encode(TEXTS)


def mexma(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mexma_runtime", *map(str, words)]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=False)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in folder.iterdir()}


@pytest.mark.parametrize("dialect", PADDED_DIALECTS)
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_texts_give_what_sentence_transformers_gives(
    tiny_checkpoint: Path, tiny_bundle: Path, precision: Precision, dialect: Dialect
) -> None:
    """Over-long texts are cut where it cuts them; a special token in a text is what it is there."""
    theirs = SentenceTransformer(str(tiny_checkpoint), device="cpu", local_files_only=True)
    expected = theirs.encode(TEXTS, batch_size=4, show_progress_bar=False)
    assert_same(encode(tiny_bundle, precision=precision, dialect=dialect), expected, precision)


def test_a_bert_with_mean_pooling_and_normalize_does_too(tiny_bert_checkpoint: Path, tmp_path: Path) -> None:
    plan = ExportRequest(out=tmp_path / "out", precisions=(Precision.FP32, Precision.FP16), check_parity=False)
    export(resolve_source(str(tiny_bert_checkpoint)), plan)
    theirs = SentenceTransformer(str(tiny_bert_checkpoint), device="cpu", local_files_only=True)
    expected = theirs.encode(TEXTS, batch_size=4, show_progress_bar=False)
    for precision in plan.precisions:
        for dialect in plan.dialects:
            assert_same(encode(plan.out, precision=precision, dialect=dialect), expected, precision)


@pytest.mark.parametrize("pooling", [None, Pooling.CLS])
def test_trained_weights(minilm_folder: Path, tmp_path: Path, pooling: Pooling | None) -> None:
    """all-MiniLM-L6-v2, by its own mean pooling and by the CLS row; its tokenizer.json pads and truncates to 128."""
    plan = ExportRequest(out=tmp_path / "out", precisions=(Precision.FP32,), pooling=pooling, check_parity=False)
    manifest = export(resolve_source(str(minilm_folder)), plan).manifest
    assert (manifest.text.max_tokens, manifest.text.max_tokens_source) == (256, "sentence_bert_config.json")
    with load_reference(
        minilm_folder, pooling=pooling or Pooling.MEAN, normalize=manifest.is_normalized, max_tokens=256
    ) as reference:
        expected = reference.encode(TEXTS, batch_size=4)
    for dialect in plan.dialects:
        assert_same(encode(plan.out, dialect=dialect), expected, Precision.FP32)


def test_sixteen_bit_and_sharded_checkpoints(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """As transformers itself writes them: bf16, in parts, under a head's prefix."""
    import torch
    from transformers import AutoModelForMaskedLM

    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="500KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    plan = ExportRequest(out=tmp_path / "out", precisions=(Precision.FP32,), check_parity=False)
    export(resolve_source(str(folder)), plan)
    with load_reference(folder, pooling=Pooling.CLS, normalize=False, max_tokens=512) as reference:
        expected = reference.encode(TEXTS, batch_size=4)
    assert_same(encode(plan.out), expected, Precision.FP32)


def test_another_process_writes_the_same_bytes(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Certificates included; another hash seed, working folder and bundle."""
    words = ("--dialect", "portable", "--dialect", "fused", "--json")
    done = mexma("export", tiny_checkpoint, "--out", tmp_path / "out", *words, PYTHONHASHSEED="12345")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # not a terminal: no bars
    assert contents(tmp_path / "out") == contents(tiny_bundle)
    printed = json.loads(done.stdout)
    assert [row["passed"] for row in printed["judged"]] == [True] * 4
    names = {entry["name"] for entry in printed["manifest"]["files"]}
    assert names == contents(tiny_bundle).keys() - {MANIFEST_NAME, *COMPANIONS}


def test_packed_engines_are_published_unjudged_where_nothing_runs_them(
    tiny_checkpoint: Path, packed_bundle: Path, tmp_path: Path
) -> None:
    words = ("--precision", "fp32", "--dialect", "fused", "--dialect", "packed", "--json")
    done = mexma("export", tiny_checkpoint, "--out", tmp_path / "out", *words, PYTHONHASHSEED="12345")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(packed_bundle)
    printed = json.loads(done.stdout)
    assert ([row["engine"] for row in printed["judged"]], printed["not_judged"]) == (["fused.fp32"], ["packed.fp32"])
    by_name = {engine.name: engine for engine in Bundle.open(tmp_path / "out").manifest.engines}
    assert [len(by_name[name].certificates) for name in ("fused.fp32", "packed.fp32")] == [1, 0]


def test_without_pytorch_the_certificate_says_what_it_was_held_against(tiny_checkpoint: Path, tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from mexma_runtime.cli.commands import main
words = "--precision fp32 --dialect portable --dialect fused".split()
sys.argv = ["mexma", "export", {str(tiny_checkpoint)!r}, "--out", {str(tmp_path / "out")!r}, *words]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for engine in Bundle.open(tmp_path / "out", verify=True).manifest.engines:
        (certificate,) = engine.certificates
        assert certificate.reference.startswith("our own portable fp32 graph on onnxruntime ")
        assert (certificate.certified, certificate.note) == (False, UNCERTIFIED_OWN)


def test_a_refused_engine_ends_with_7_and_the_others_are_published(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder, out = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny")), tmp_path / "out"
    tensors = load_file(folder / "model.safetensors")
    for part in ("weight", "bias"):  # which fp16 rounds coarsely
        tensors[f"encoder.layer.2.output.LayerNorm.{part}"] *= np.float32(1e-7)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    done = mexma("export", folder, "--out", out, "--dialect", "portable")
    assert done.returncode == 7
    assert "REFUSED" in done.stdout
    assert "engines: portable.fp32\n" in done.stdout
    first, second = done.stderr.splitlines()[:2]
    assert first == "error: not published:"
    assert second.startswith("  - portable.fp16: ")
    assert [engine.name for engine in Bundle.open(out, verify=True).manifest.engines] == ["portable.fp32"]


def test_exit_codes_and_one_message(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    def refused(*words: str | Path) -> tuple[int, str]:
        done = mexma(*words)
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        return done.returncode, done.stderr

    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_checkpoint, pickled, ignore=shutil.ignore_patterns("*.safetensors"))
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    code, message = refused("export", pickled, "--out", tmp_path / "out")
    assert code == 4
    assert "pickle" in message

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    code, message = refused("export", tiny_checkpoint, "--out", tmp_path / "mine")
    assert code == 2
    assert "neither empty nor a bundle (it holds thesis.tex)" in message

    out = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    code, message = refused("export", tiny_checkpoint, "--out", out, "--pooling", "mean")
    assert code == 5
    assert "pooling cls there, mean here" in message
    with Staging(out):
        code, message = refused("export", tiny_checkpoint, "--out", out)
    assert code == 5
    assert "another export or build is writing here" in message
    (tmp_path / "file").touch()
    code, message = refused("export", tiny_checkpoint, "--out", tmp_path / "file" / "out")
    assert code == 10
    assert "out: cannot be made a folder: Not a directory" in message
    assert contents(out) == contents(tiny_bundle)
