from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mexma_benchmarks.result.environment import detect_environment, read_commit


def git(folder: Path, *arguments: str) -> str:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    settings = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *settings, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_an_environment_is_ready_for_json_and_names_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["/somewhere/mexma", "bench", "run", "--corpus", "/somewhere/text.txt", "--out", "a/b.json"]
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "3")

    environment = detect_environment(("mexma",))

    assert " ".join(environment.command) == "mexma bench run --corpus text.txt --out a/b.json"
    assert environment.variables["OMP_NUM_THREADS"] == "3"
    assert environment.versions["numpy"] == np.__version__
    text = json.dumps(dataclasses.asdict(environment))
    assert "/somewhere" not in text


def test_a_commit_tells_of_changes(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    tracked = tmp_path / "tracked.txt"
    tracked.write_text("one")
    assert read_commit(tmp_path) is None

    git(tmp_path, "add", "tracked.txt")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert read_commit(tmp_path) == commit

    tracked.write_text("two")
    assert read_commit(tmp_path) == f"{commit}+changes"


def test_an_installed_package_is_not_the_checkout_it_lies_in(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "theirs")
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "module.py").write_text("")

    assert read_commit(installed) is None
    assert read_commit(tmp_path / "nowhere") is None
