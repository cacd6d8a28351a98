"""Checkpoints by their ids: from the hub's cache on this machine, and what is said where the hub cannot be reached."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mexma_export.bundle.pipeline import export
from mexma_export.bundle.request import ExportRequest
from mexma_export.checkpoint.sources import resolve_source
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.types import Precision

COMMIT, OTHER_COMMIT = "0123456789abcdef" * 2 + "01234567", "f" * 40
UNREACHABLE = {"HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
"""A port that nothing listens on: the hub's client is refused for real."""
OFFLINE = {"HF_HUB_OFFLINE": "1"}


def cache(home: Path, model_id: str, commit: str, files: dict[str, Path]) -> Path:
    """Lay `files` (name -> content's file) out as the hub's client does; returns the snapshot's folder."""
    folder = home / "hub" / f"models--{model_id.replace('/', '--')}"
    for name in ("blobs", "refs", f"snapshots/{commit}"):
        (folder / name).mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit, encoding="utf-8")
    for name, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content.read_bytes()).hexdigest()
        shutil.copyfile(content, blob)
        (folder / "snapshots" / commit / name).symlink_to(f"../../blobs/{blob.name}")
    return folder / "snapshots" / commit


@pytest.fixture(scope="module")
def home(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds MEXMA as one listing of its repository had it, and the tokenizer that its authors load."""
    home = tmp_path_factory.mktemp("hub")
    names = ("config.json", "model.safetensors", "README.md")
    cache(home, "facebook/MEXMA", COMMIT, {name: tiny_checkpoint / name for name in names})
    names = ("config.json", "tokenizer.json", "tokenizer_config.json")
    cache(home, "FacebookAI/xlm-roberta-large", OTHER_COMMIT, {name: tiny_checkpoint / name for name in names})
    return home


@pytest.fixture(scope="module")
def snapshot(home: Path) -> Path:
    return home / "hub" / "models--facebook--MEXMA" / "snapshots" / COMMIT


def mexma(*words: str | Path, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mexma_runtime", *map(str, words)]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env = inherited | {"HF_HOME": str(home)} | env
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_mexma_from_the_cache(home: Path, tmp_path: Path) -> None:
    words = ("--precision", "fp32", "--dialect", "fused", "--json")
    done = mexma("export", "facebook/MEXMA", "--out", tmp_path / "out", *words, home=home, **OFFLINE)
    assert done.returncode == 0, done.stderr
    note, warning = done.stderr.splitlines()
    assert note == (
        "facebook/MEXMA holds no tokenizer.json: taking the one of FacebookAI/xlm-roberta-large, as its authors do"
    )
    assert warning.startswith("warning: this checkpoint has no modules.json, so sentence-transformers mean-pools it")
    manifest = Bundle.open(tmp_path / "out", verify=True).manifest
    assert (manifest.model.id, manifest.model.revision) == ("facebook/MEXMA", COMMIT)
    assert (manifest.pooling.value, manifest.pooling.source) == ("cls", "the model card of facebook/MEXMA")
    assert (manifest.normalize.value, manifest.text.max_tokens) == ("false", 512)
    (judged,) = json.loads(done.stdout)["judged"]
    assert judged["passed"]
    assert judged["certificate"]["reference"].startswith("transformers ")


def test_a_snapshot_by_its_path_is_the_same_checkpoint(snapshot: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = resolve_source(str(snapshot), tokenizer=str(tiny_checkpoint))
    assert source.notes == ()
    plan = ExportRequest(out=tmp_path / "out", precisions=(Precision.FP32,), check_parity=False)
    manifest = export(source, plan).manifest
    assert (manifest.model.id, manifest.model.revision, manifest.pooling.value) == ("facebook/MEXMA", COMMIT, "cls")


def test_an_unreachable_hub_with_a_cache_is_no_trouble(home: Path, tmp_path: Path) -> None:
    words = ("--precision", "fp32", "--dialect", "fused", "--skip-parity", "--revision", "main")
    done = mexma("export", "facebook/MEXMA", "--out", tmp_path / "out", *words, home=home, **UNREACHABLE)
    assert done.returncode == 0, done.stderr
    assert Bundle.open(tmp_path / "out").manifest.model.revision == COMMIT


@pytest.mark.parametrize("env", [OFFLINE, UNREACHABLE], ids=["offline", "unreachable"])
def test_an_unreachable_hub_without_a_cache_names_two_ways_on(env: dict[str, str], tmp_path: Path) -> None:
    done = mexma("export", "facebook/MEXMA", "--out", tmp_path / "out", home=tmp_path, **env)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("error: facebook/MEXMA: no such folder, no copy in the hub's cache, and the hub")
    assert "mexma export /path/to/MEXMA --out DIR" in done.stderr
    assert "mexma export standin:mexma --out DIR" in done.stderr
    assert len(done.stderr.splitlines()) == 3
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_cannot_be_had_is_not_taken_for_the_model(snapshot: Path, tmp_path: Path) -> None:
    done = mexma("export", snapshot, "--out", tmp_path / "out", home=tmp_path, **OFFLINE)
    assert done.returncode == 4
    assert done.stderr.startswith("error: FacebookAI/xlm-roberta-large: no such folder, no copy in the hub's cache")
    assert "can be given by --tokenizer" in done.stderr
    assert "standin" not in done.stderr


def test_a_revision_that_the_cache_lacks_is_not_replaced_by_another(home: Path, tmp_path: Path) -> None:
    words = ("--revision", OTHER_COMMIT)
    done = mexma("export", "facebook/MEXMA", "--out", tmp_path / "out", *words, home=home, **OFFLINE)
    assert done.returncode == 4
    assert "no copy in the hub's cache" in done.stderr
