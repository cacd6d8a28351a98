from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mexma_benchmarks.peers import PEERS, find_peers, peer_subject
from mexma_benchmarks.peers.environments import (
    MARKER,
    PeerEnvironment,
    PeerEnvironmentError,
    make_environments,
    peer_environment,
)
from mexma_runtime.errors import UsageError

ENVIRONMENTS = sorted({peer.environment for peer in PEERS})


def nothing(what: str, done: int, total: int) -> None:
    pass


def write_package(folder: Path) -> None:
    """One that pip can install without a network: its build backend is beside it."""
    folder.mkdir()
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (folder / "backend.py").write_text(
        """
import zipfile

INFO = "tiny_peer-1.0.dist-info/"

def build_wheel(folder, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(folder + "/tiny_peer-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_peer.py", "ANSWER = 42")
        wheel.writestr(INFO + "METADATA", "Metadata-Version: 2.1\\nName: tiny-peer\\nVersion: 1.0\\n")
        wheel.writestr(INFO + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(INFO + "RECORD", "")
    return "tiny_peer-1.0-py3-none-any.whl"
"""
    )


@dataclass(frozen=True, kw_only=True)
class Made:
    """What became of an environment that can be made and one that cannot."""

    good: PeerEnvironment
    broken: PeerEnvironment
    error: PeerEnvironmentError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("peers")
    write_package(folder / "package")
    (folder / "good.txt").write_text(f"--no-index\n{folder / 'package'}\n")
    (folder / "broken.txt").write_text("--no-index\nno-such-package-as-this==1\n")
    good, broken = (
        PeerEnvironment(requirements=folder / f"{name}.txt", folder=folder / ".peers" / name)
        for name in ("good", "broken")
    )
    assert good.python is None
    with pytest.raises(PeerEnvironmentError) as failure:
        make_environments([broken, good], nothing)
    return Made(good=good, broken=broken, error=failure.value)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_requirements_are_pinned(name: str) -> None:
    lines = peer_environment(name, Path()).requirements.read_text().splitlines()

    pins = [Requirement(line).specifier for line in lines if not line.startswith("#")]

    assert pins
    assert all(len(pin) == 1 and str(pin).startswith("==") for pin in pins)


def test_names_are_unique_and_adapters_exist() -> None:
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    assert all(find_spec(f"mexma_benchmarks.adapters.{peer.adapter}") for peer in PEERS)


def test_adapters_import_neither_their_libraries_nor_the_rest_of_the_project() -> None:
    adapters = sorted({peer.adapter for peer in PEERS} | {"http_server"})
    program = f"""
import importlib, sys
for adapter in {adapters}:
    importlib.import_module("mexma_benchmarks.adapters." + adapter)
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    imported = {name.split(".")[0] for name in done.stdout.split()}
    assert imported.isdisjoint({"mexma_export", "mexma_runtime", "torch", "transformers", "onnxruntime", "openvino"})


def test_peers_are_found_by_name() -> None:
    assert find_peers([PEERS[1].name]) == (PEERS[1],)
    assert find_peers([]) == PEERS
    with pytest.raises(UsageError, match="no peer is called 'fast': there are sentence-transformers torch, "):
        find_peers(["fast"])


def test_a_peer_without_its_environment_is_unavailable(tmp_path: Path) -> None:
    subject = peer_subject(PEERS[0], tmp_path)

    assert subject.unavailable == "not installed: make peers"
    assert subject.python is None
    assert "sentence-transformers" in subject.environment


def test_an_environment_has_what_it_requires(made: Made) -> None:
    assert made.good.python

    answer = subprocess.check_output([made.good.python, "-c", "import tiny_peer; print(tiny_peer.ANSWER)"], text=True)

    assert answer == "42\n"
    assert "tiny-peer" in made.good.log.read_text()


def test_one_that_fails_says_why(made: Made) -> None:
    message = str(made.error)

    assert message.startswith("1 of 2 environments could not be made")
    assert "No matching distribution found for no-such-package-as-this==1" in message
    assert str(made.broken.log) in message
    assert made.error.exit_code != 0
    assert made.broken.python is None


def test_a_complete_one_is_left_as_it_is_and_one_of_other_requirements_made_again(made: Made) -> None:
    stray = made.good.folder / "stray"
    stray.touch()

    made.good.make()
    assert stray.exists()
    made.good.requirements.write_text(made.good.requirements.read_text() + "# changed\n")
    assert made.good.python is None
    made.good.make()

    assert made.good.python
    assert not stray.exists()


def test_a_half_made_one_is_not_there(tmp_path: Path) -> None:
    environment = PeerEnvironment(requirements=tmp_path / "tiny.txt", folder=tmp_path / "tiny")
    environment.requirements.touch()
    python = environment.folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()

    assert environment.python is None

    digest = hashlib.sha256(b"").hexdigest()
    (environment.folder / MARKER).write_text(digest)
    assert environment.python == python


def test_one_that_is_being_made_is_left_alone(tmp_path: Path) -> None:
    environment = PeerEnvironment(requirements=tmp_path / "tiny.txt", folder=tmp_path / "tiny")

    with environment.log.open("w") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        with pytest.raises(PeerEnvironmentError, match="another process is making it"):
            environment.make()

    assert not environment.folder.exists()
