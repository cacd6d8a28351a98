"""The repairs that generated type stubs need; that mypy reads them is checked by the tool itself, in `make lint`."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

STUB = '''\
class DataType:
    pass
bool: DataType
class Profile:
    def set_shape(self, input: str, min: Dims) -> bool: ...
    def broken(self, x: <tensorrt.X object>) -> None:
        """x"""
    def also(self, x: int = <X.Y: 1>):
        ...
'''


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).parents[3] / "tools" / "check_tensorrt.py"
    spec = importlib.util.spec_from_file_location("check_tensorrt", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_no_python_is_widened_and_pythons_bool_is_meant(tool: ModuleType) -> None:
    text = tool.repaired(STUB)
    ast.parse(text)
    assert text.startswith("# mypy: ignore-errors\n")
    assert "def set_shape(self, input: str, min: Dims) -> builtins.bool: ..." in text
    assert "def broken(*args: typing.Any, **kwargs: typing.Any) -> None:" in text
    assert "def also(*args: typing.Any, **kwargs: typing.Any) -> typing.Any:" in text
    assert "\nbool: DataType\n" in text


def test_all_that_imports_tensorrt_is_checked(tool: ModuleType) -> None:
    found = {
        str(path.relative_to(tool.ROOT))
        for folder in ("runtime", "export", "benchmarks")
        for path in (tool.ROOT / folder).rglob("*.py")
        if "import tensorrt" in path.read_text(encoding="utf-8")
    }
    assert found
    assert found <= set(tool.CHECKED)
