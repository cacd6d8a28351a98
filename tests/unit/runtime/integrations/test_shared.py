from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pytest

from mexma_runtime import BundleError, Encoder, UsageError

LIBRARIES = {
    "bertopic": ("bertopic", "bertopic", "bertopic"),
    "chroma": ("chromadb", "chromadb", "chroma"),
    "keybert": ("keybert", "keybert", "keybert"),
    "langchain": ("langchain_core", "langchain-core", "langchain"),
    "llama_index": ("llama_index.core", "llama-index-core", "llama-index"),
}
"""Adapter -> the module that it imports, the package and the extra that bring it."""
CLASSES = {
    "bertopic": "MexmaEmbedder",
    "chroma": "MexmaEmbeddingFunction",
    "keybert": "MexmaEmbedder",
    "langchain": "MexmaEmbeddings",
    "llama_index": "MexmaEmbedding",
}

WITHOUT = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in {absent}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Absent())
"""

adapters = pytest.mark.parametrize("adapter", LIBRARIES)


def python(code: str, *args: str, absent: Sequence[str] = ()) -> str:
    """What `code` prints, on either stream, where the modules `absent` are not installed."""
    command = [sys.executable, "-c", WITHOUT.format(absent=absent) + code, *args]
    return subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


@adapters
def test_a_missing_library_names_the_extra(adapter: str) -> None:
    module, package, extra = LIBRARIES[adapter]
    printed = python(f"import mexma_runtime.integrations.{adapter}", absent=[module.split(".")[0]])
    assert printed.splitlines()[-1] == (
        f"mexma_runtime.errors.MissingDependencyError: {package} is not installed, and its adapter needs it: "
        f"pip install 'mexma-runtime[{extra}]'"
    )


def test_a_library_that_is_there_but_broken_is_not_called_missing() -> None:
    printed = python("import mexma_runtime.integrations.keybert", absent=["sklearn"])
    assert printed.splitlines()[-1] == "ModuleNotFoundError: No module named 'sklearn'"


def test_the_runtime_imports_none_of_them() -> None:
    code = "import mexma_runtime.integrations, mexma_runtime.cli.commands; print(*sys.modules)"
    packages = {name.split(".")[0] for name in python(code).split()}
    assert "mexma_runtime" in packages
    assert packages.isdisjoint({module.split(".")[0] for module, _, _ in LIBRARIES.values()} | {"torch"})


@adapters
def test_no_adapter_needs_pytorch(adapter: str, minilm_bundle: Path) -> None:
    code = f"""
from mexma_runtime.integrations.{adapter} import {CLASSES[adapter]}
{CLASSES[adapter]}(sys.argv[1], n_threads=1)
print("done")
"""
    printed = python(code, str(minilm_bundle), absent=["torch", "transformers", "sentence_transformers"])
    assert printed.splitlines()[-1] == "done"


@adapters
def test_a_folder_without_a_bundle_is_refused(adapter: str, tmp_path: Path) -> None:
    adapted = getattr(import_module(f"mexma_runtime.integrations.{adapter}"), CLASSES[adapter])
    with pytest.raises(BundleError, match=r"holds no bundle\.json"):
        adapted(tmp_path)


@adapters
def test_options_are_those_of_load_and_for_a_folder(adapter: str, encoder: Encoder, minilm_bundle: Path) -> None:
    adapted = getattr(import_module(f"mexma_runtime.integrations.{adapter}"), CLASSES[adapter])
    adapted(minilm_bundle, engine="portable.fp32", verify=True)
    with pytest.raises(TypeError, match="unknown options: n_thread"):
        adapted(minilm_bundle, n_thread=1)
    with pytest.raises(UsageError, match="n_threads, device: options are for a folder"):
        adapted(encoder, n_threads=1, device="cpu")


@adapters
def test_what_is_neither_an_encoder_nor_a_folder_is_refused(adapter: str) -> None:
    adapted = getattr(import_module(f"mexma_runtime.integrations.{adapter}"), CLASSES[adapter])
    for given in (None, object()):
        with pytest.raises(UsageError, match="encoder: expected an Encoder or the folder of a bundle, got "):
            adapted(given)
