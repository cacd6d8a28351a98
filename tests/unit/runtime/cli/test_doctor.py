from __future__ import annotations

from dataclasses import replace

from mexma_runtime.backends import BackendStatus
from mexma_runtime.cli.doctor import find_problems, on_this_machine

WORKS = BackendStatus(name="onnxruntime", device="cpu", version="1.31.1", problem=None, gpus="")
FAILS = BackendStatus(name="onnxruntime", device="cpu", version=None, problem="not installed", gpus="")


def test_both_onnxruntimes_are_a_problem() -> None:
    [problem] = find_problems({"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}, [WORKS])

    assert "overwrite each other's files: uninstall both" in problem


def test_one_onnxruntime_is_none() -> None:
    assert find_problems({"onnxruntime": "1.31.1", "onnxruntime-gpu": None}, [WORKS]) == []
    assert find_problems({"onnxruntime": None, "onnxruntime-gpu": "1.31.1"}, [WORKS, FAILS]) == []


def test_no_backend_is_a_problem_with_a_way_out() -> None:
    [problem] = find_problems({}, [FAILS])

    assert "pip install 'mexma-runtime[cpu]'" in problem


def test_without_a_gpu_nothing_for_gpus_is_to_be_installed() -> None:
    advice = "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'mexma-runtime[gpu]'"
    lacking = replace(FAILS, device="cuda", problem=advice)

    assert on_this_machine(lacking, True) is lacking
    assert str(on_this_machine(lacking, False).problem).startswith("no NVIDIA GPU here: no driver was found")
    assert "pip" not in str(on_this_machine(lacking, False).problem)
    for_some = replace(lacking, gpus="8.9 (GeForce RTX 40)")
    assert str(on_this_machine(for_some, False).problem).endswith("it runs on compute capability 8.9 (GeForce RTX 40)")
    unknown = str(on_this_machine(lacking, None).problem)
    assert unknown.startswith("no NVIDIA GPU is known here (cuda-bindings would tell); where there is one: ")
    assert unknown.endswith(advice)
    for status in (WORKS, FAILS, replace(WORKS, device="cuda")):
        assert on_this_machine(status, False) is on_this_machine(status, None) is status
