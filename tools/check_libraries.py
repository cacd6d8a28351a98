"""`python tools/check_libraries.py [NAME ...]`: run libraries that stand on sentence-transformers, on a bundle.

tests/libraries has for each a file of pinned requirements, NAME.txt, and the module that runs it, which is the same for
all versions of one library: test_langchain.py for langchain.txt, test_sentence_transformers.py for
sentence-transformers-5.2.txt and others. Each has an environment of its own in .libraries, and beside it the project as
pip installs it. The development environment makes the bundle and the vectors that theirs are held against.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mexma_benchmarks.peers.environments import PeerEnvironment, PeerEnvironmentError
from mexma_benchmarks.run.models import minilm_source
from mexma_export.bundle.pipeline import export
from mexma_export.bundle.request import ExportRequest
from mexma_export.checkpoint.sources import resolve_source
from mexma_runtime import Encoder, TruncationWarning
from mexma_runtime.types import Precision

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "libraries"
ENVIRONMENTS = ROOT / ".libraries"
PROMPTS = {"query": "query: ", "document": "passage: "}
"""MiniLM has none: with these it shows which prompt a library asks for."""
TEXTS = (
    "The ferry leaves at noon.",
    "When does the boat go?",
    "Bake the bread for forty minutes.",
    "Het brood staat veertig minuten in de oven.",
    "  The court has ruled,\nand the appeal was dismissed.  ",
    "",
    "the ferry leaves at noon " * 100,
)
"""The last is longer than the model reads."""
PASSED = "passed"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True, kw_only=True)
class Library:
    """One library in one version."""

    name: str

    @property
    def environment(self) -> PeerEnvironment:
        """Where it is installed."""
        return PeerEnvironment(requirements=TESTS / f"{self.name}.txt", folder=ENVIRONMENTS / self.name)

    @property
    def module(self) -> Path:
        """Its tests."""
        return TESTS / f"test_{re.sub(r'-[0-9.]+$', '', self.name).replace('-', '_')}.py"

    @property
    def pins(self) -> str:
        """What is installed, on one line."""
        lines = self.environment.requirements.read_text(encoding="utf-8").splitlines()
        return ", ".join(line.replace("==", " ") for line in lines if not line.startswith("#"))


def main(names: Sequence[str]) -> int:
    """Check the libraries `names`, all of them if there are none; the exit status."""
    libraries = find_libraries(names)
    with tempfile.TemporaryDirectory() as folder:
        variables = prepare(Path(folder))
        ends = {library: check(library, variables) for library in libraries}
    return report(ends)


def find_libraries(names: Sequence[str]) -> list[Library]:
    """Those of `names`, all where it is empty; SystemExit for a name that none has."""
    known = {path.stem: Library(name=path.stem) for path in sorted(TESTS.glob("*.txt"))}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"no library is called {unknown[0]!r}: there are {', '.join(known)}")
    return [known[name] for name in names] or list(known.values())


def prepare(work: Path) -> dict[str, str]:
    """Install the project into `work` and make the bundle and its vectors there; what tells tests where they are."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, str(work / "project"), str(ROOT)], check=True)
    checkpoint = Path(shutil.copytree(minilm_source().folder, work / "checkpoint"))
    settings = checkpoint / "config_sentence_transformers.json"
    settings.write_text(json.dumps(json.loads(settings.read_text(encoding="utf-8")) | {"prompts": PROMPTS}))
    export(resolve_source(str(checkpoint)), ExportRequest(out=work / "bundle", precisions=(Precision.FP32,)))
    with Encoder.load(work / "bundle") as encoder, warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        np.savez(
            work / "vectors.npz",
            texts=np.array(TEXTS),
            plain=encoder.encode(TEXTS),
            query=encoder.encode_query(TEXTS),
            document=encoder.encode_document(TEXTS),
        )
    return {
        "PYTHONPATH": str(work / "project"),
        "MEXMA_BUNDLE": str(work / "bundle"),
        "MEXMA_VECTORS": str(work / "vectors.npz"),
        "HF_HOME": str(work / "hub"),
        **OFFLINE,
    }


def check(library: Library, variables: dict[str, str]) -> str:
    """How it ended; what pytest or pip says goes to stdout."""
    is_there = library.environment.python is not None
    print(f"{library.name}: {'running' if is_there else 'installing and running'}", flush=True)
    try:
        library.environment.make()
    except PeerEnvironmentError as error:
        print(error)
        return "not installed"
    command = [str(library.environment.python), "-m", "pytest", "-q", str(library.module)]
    done = subprocess.run(command, env=os.environ | variables, cwd=TESTS, check=False)
    return "failed" if done.returncode else PASSED


def report(ends: Mapping[Library, str]) -> int:
    """Print how each ended and what it is; the exit status, 1 if any did not pass."""
    for library, end in ends.items():
        print(f"{library.name}: {end} ({library.pins})")
    return int(any(end != PASSED for end in ends.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
