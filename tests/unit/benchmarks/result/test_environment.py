from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mexma_benchmarks.result.environment import detect_environment, module_versions, read_commit


def git(folder: Path, *arguments: str) -> str:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    settings = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *settings, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_an_environment_is_ready_for_json_and_names_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv",
        [
            "/somewhere/mexma",
            "bench",
            "run",
            "--corpus",
            "/somewhere/text.txt",
            "--cache=/somewhere/c",
            "--out",
            "a/b.json",
        ],
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "3")

    environment = detect_environment(("mexma",))

    assert " ".join(environment.command) == "mexma bench run --corpus text.txt --cache=c --out a/b.json"
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


def install(site: Path, package: str, version: str, module: str) -> None:
    """As pip leaves it: the module, and the package's description that lists it."""
    (site / module).mkdir(parents=True, exist_ok=True)
    (site / module / "__init__.py").write_text("raise AssertionError('imported')")
    described = site / f"{package.replace('-', '_')}-{version}.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (described / "RECORD").write_text(f"{module}/__init__.py,,\n")


def test_the_package_is_named_that_would_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU package in a folder of PYTHONPATH comes before the CPU package of the environment."""
    install(tmp_path / "site", "some-runtime", "1.30.0", "some_runtime")
    install(tmp_path / "site", "some-runtime-tools", "9.0", "some_runtime_tools")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert module_versions("some_runtime") == {"some-runtime": "1.30.0"}

    install(tmp_path / "first", "some-runtime-gpu", "1.31.1", "some_runtime")
    monkeypatch.syspath_prepend(tmp_path / "first")
    assert module_versions("some_runtime") == {"some-runtime-gpu": "1.31.1"}

    install(tmp_path / "first", "some-runtime", "1.29.0", "some_runtime")
    assert module_versions("some_runtime") == {"some-runtime-gpu": "1.31.1", "some-runtime": "1.29.0"}


def test_a_module_that_is_missing_or_described_nowhere_has_no_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", "some-runtime", "1.30.0", "some_runtime")
    (tmp_path / "bare" / "some_runtime").mkdir(parents=True)
    (tmp_path / "bare" / "some_runtime" / "__init__.py").touch()
    for folder in ("site", "bare"):
        monkeypatch.syspath_prepend(tmp_path / folder)
    assert module_versions("some_runtime") == {"some_runtime": None}
    assert module_versions("some_runtime_that_nobody_has") == {"some_runtime_that_nobody_has": None}
