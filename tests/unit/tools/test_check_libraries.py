"""What the runner of other libraries says; the libraries themselves are run by `make test-integrations`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

TOOL = Path(__file__).parents[3] / "tools" / "check_libraries.py"
LIBRARIES = TOOL.parents[1] / "tests" / "libraries"
NAMES = sorted(path.stem for path in LIBRARIES.glob("*.txt"))


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_libraries", TOOL)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for the names in annotations
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_requirements_are_pinned(name: str) -> None:
    lines = (LIBRARIES / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    pins = {found.name: found.specifier for line in lines if not line.startswith("#") for found in [Requirement(line)]}
    assert all(len(pin) == 1 and str(pin).startswith("==") for pin in pins.values())
    assert {"sentence-transformers", "transformers", "torch", "onnxruntime", "pytest"} <= pins.keys()


def test_each_library_has_a_module_and_each_module_a_library(tool: ModuleType) -> None:
    modules = {library.module for library in tool.find_libraries([])}
    assert modules == set(LIBRARIES.glob("test_*.py"))
    (old,) = tool.find_libraries(["sentence-transformers-5.2"])
    assert old.module.name == "test_sentence_transformers.py"


def test_a_name_that_none_has_is_refused(tool: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"no library is called 'lang': there are .*langchain, "):
        tool.find_libraries(["lang"])


def test_one_that_fails_fails_the_run(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tool.find_libraries(["langchain", "txtai"])
    assert tool.report({first: "passed", second: "failed"}) == 1
    assert tool.report({first: "passed", second: "passed"}) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("langchain: passed (langchain-huggingface ")
    assert lines[1].startswith("txtai: failed (txtai ")


@pytest.mark.parametrize(
    ("requirements", "end", "said"),
    [
        ("--no-index\nno-such-library-as-this==1\n", "not installed", "No matching distribution found"),
        ("--no-index\n", "failed", "No module named pytest"),
    ],
)
def test_what_cannot_be_installed_or_run_is_said(
    tool: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    requirements: str,
    end: str,
    said: str,
) -> None:
    monkeypatch.setattr(tool, "TESTS", tmp_path)
    monkeypatch.setattr(tool, "ENVIRONMENTS", tmp_path / "environments")
    (tmp_path / "tiny.txt").write_text(requirements)
    (library,) = tool.find_libraries([])
    assert tool.check(library, {}) == end
    printed = capfd.readouterr()
    assert said in printed.out + printed.err
