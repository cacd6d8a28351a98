from __future__ import annotations

from mexma_runtime.backends import BackendStatus
from mexma_runtime.cli.doctor import find_problems

WORKS = BackendStatus(name="onnxruntime", device="cpu", version="1.31.1", problem=None)
FAILS = BackendStatus(name="onnxruntime", device="cpu", version=None, problem="not installed")


def test_both_onnxruntimes_are_a_problem() -> None:
    [problem] = find_problems({"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}, [WORKS])

    assert "overwrite each other's files: uninstall both" in problem


def test_one_onnxruntime_is_none() -> None:
    assert find_problems({"onnxruntime": "1.31.1", "onnxruntime-gpu": None}, [WORKS]) == []
    assert find_problems({"onnxruntime": None, "onnxruntime-gpu": "1.31.1"}, [WORKS, FAILS]) == []


def test_no_backend_is_a_problem_with_a_way_out() -> None:
    [problem] = find_problems({}, [FAILS])

    assert "pip install 'mexma-runtime[cpu]'" in problem
