"""The wheel, built from the sdist, installed into an empty environment and used from there.

The environment holds the wheel and links to what it declares for the extras asked for, and nothing else: a dependency
that is used but not declared is missing there, and so is PyTorch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mexma_runtime.errors import MissingDependencyError

CHECKOUT = Path(__file__).parents[2]
PACKAGES = {"mexma_runtime": "runtime", "mexma_export": "export", "mexma_benchmarks": "benchmarks"}
"""Import package -> its folder in the checkout."""

Install = Callable[..., Path]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that was made from it."""
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(CHECKOUT)], cwd=folder)
    return folder


@pytest.fixture(scope="module")
def install(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Make an environment with the wheel and the dependencies of some extras; returns its folder."""
    (wheel,) = built.glob("*.whl")

    def make(*extras: str) -> Path:
        folder = tmp_path_factory.mktemp("-".join(extras))
        venv.create(folder, symlinks=True)
        python = str(folder / "bin" / "python")
        site_packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
        pip = [sys.executable, "-m", "pip", "--python", python]
        run([*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel)], cwd=folder)
        for distribution in dependencies("mexma-runtime", *extras):
            for entry in {file.parts[0] for file in distribution.files or [] if file.parts[0] != ".."}:
                if entry != "__pycache__" and not (link := site_packages / entry).exists():
                    link.symlink_to(Path(str(distribution.locate_file(entry))))
        return folder

    return make


def dependencies(name: str, *extras: str) -> Iterator[metadata.Distribution]:
    """The installed distributions that `name[extras]` requires, and those that they require in turn."""
    seen, ahead = set(), [(name, frozenset(extras))]
    while ahead:
        name, wanted = item = ahead.pop()
        if item in seen:
            continue
        seen.add(item)
        distribution = metadata.distribution(name)
        for line in distribution.requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in {"", *wanted}):
                ahead.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
        if name != "mexma-runtime":
            yield distribution


def run(command: list[str], *, cwd: Path) -> str:
    """Run a command as from a fresh shell in `cwd`; returns its standard output."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_wheel_holds_the_three_packages_whole_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(CHECKOUT / folder).as_posix()
        for package, folder in PACKAGES.items()
        for path in (CHECKOUT / folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == expected
    assert {f"{package}/py.typed" for package in PACKAGES} <= names


def test_the_sdist_holds_what_the_checkout_shows_and_no_litter(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        paths = [Path(*Path(member.name).parts[1:]) for member in archive if member.isfile()]
    assert [path for path in paths if path.name != "PKG-INFO" and not (CHECKOUT / path).is_file()] == []
    assert {path.parts[0] for path in paths} >= {"Makefile", "README.md", "constraints.txt", "tests"}
    assert [path for path in paths if path.suffix == ".pyc" or path.parts[0] in {".venv", "engines", "build"}] == []


def test_the_wheel_is_found_outside_the_checkout(install: Install, tmp_path: Path) -> None:
    folder = install("cpu")
    code = f"""
from importlib import metadata, util
for name in {[*PACKAGES]}:
    print(util.find_spec(name).origin)
print(util.find_spec("torch"), util.find_spec("onnx"))
print(*sorted(point.value for point in metadata.entry_points(group="mexma.commands")))
"""
    *origins, absent, commands = run([str(folder / "bin" / "python"), "-c", code], cwd=tmp_path).splitlines()
    assert [Path(origin).is_relative_to(folder) for origin in origins] == [True, True, True]
    assert absent == "None None"
    exports = [f"mexma_export.cli.{name}:register_{name}" for name in ("build", "export", "parity", "standin")]
    assert commands.split() == ["mexma_benchmarks.cli:register_bench", *exports]


def test_the_command_starts_with_the_runtime_alone(install: Install, tmp_path: Path) -> None:
    mexma = str(install("cpu") / "bin" / "mexma")
    assert "embed" in run([mexma, "--help"], cwd=tmp_path)
    refused = subprocess.run(
        [mexma, "export", "standin:tiny", "--out", "bundle"], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert refused.returncode == MissingDependencyError.exit_code
    assert "pip install 'mexma-runtime[export]'" in refused.stderr


def test_a_checkpoint_becomes_vectors_without_pytorch(install: Install, tmp_path: Path) -> None:
    mexma = str(install("cpu", "export") / "bin" / "mexma")
    run([mexma, "standin", "tiny", "--out", "checkpoint"], cwd=tmp_path)
    printed = run([mexma, "export", "checkpoint", "--out", "bundle", "--json"], cwd=tmp_path)
    certificates = {engine["engine"]: engine["certificate"] for engine in json.loads(printed)["judged"]}
    assert sorted(certificates) == ["fused.fp16", "fused.fp32", "portable.fp16", "portable.fp32"]
    assert all("our own portable fp32 graph" in certificate["reference"] for certificate in certificates.values())
    assert not any(certificate["certified"] for certificate in certificates.values())
    (tmp_path / "sentences.txt").write_text("one sentence\n\nand another\n", encoding="utf-8")
    run(
        [mexma, "embed", "sentences.txt", "--bundle", "bundle", "-o", "vectors.npy", "--precision", "fp32"],
        cwd=tmp_path,
    )
    vectors = np.load(tmp_path / "vectors.npy")
    assert vectors.shape == (3, 64)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
