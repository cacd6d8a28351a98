"""What is here: versions, the machine as far as this process may use it, and which backends work."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass, field, replace

from mexma_runtime.backends import BackendStatus, backend_statuses, gpu_lines, has_gpu_driver, runnable_engines
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.cli.attention_kernels import attention_kernels
from mexma_runtime.errors import EngineUnavailableError
from mexma_runtime.hardware import Hardware, default_threads, detect_hardware

PACKAGES = (
    *("mexma-runtime", "numpy", "tokenizers", "typer", "onnxruntime", "onnxruntime-gpu", "openvino"),
    *("cuda-bindings", "nvidia-cublas", "nvidia-cudnn-cu13", "tensorrt-cu13", "tensorrt-rtx-cu13"),
    *("onnx", "onnx-ir", "safetensors", "huggingface-hub", "torch", "transformers", "sentence-transformers"),
)


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All that `mexma doctor` says; plain values, ready for JSON by `dataclasses.asdict`."""

    versions: dict[str, str | None]
    """None: not installed."""
    python: str
    system: str
    hardware: Hardware
    n_threads: int
    """Threads that an encoder takes unless told otherwise."""
    backends: list[BackendStatus]
    gpus: list[str]
    """NVIDIA GPUs that this process sees."""
    problems: list[str]
    """What should be put right."""
    attention: dict[str, str] = field(default_factory=dict)
    """Engine of a bundle that runs on a GPU -> the kernels that its attention ran, or why it did not."""


def diagnose(bundle: Bundle | None = None, device: str = "cuda") -> Diagnosis:
    """Look around; imports the libraries of the backends. With a bundle, runs its engines for `device`, a GPU."""
    versions = {package: _version(package) for package in PACKAGES}
    hardware = detect_hardware()
    has_driver = has_gpu_driver()
    backends = [on_this_machine(status, has_driver) for status in backend_statuses()]
    return Diagnosis(
        versions=versions,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=platform.platform(),
        hardware=hardware,
        n_threads=default_threads(hardware),
        backends=backends,
        gpus=gpu_lines(),
        problems=find_problems(versions, backends),
        attention=_attention(bundle, device) if bundle else {},
    )


def _attention(bundle: Bundle, device: str) -> dict[str, str]:
    found = {}
    for _, engine in runnable_engines(bundle, device):
        try:
            kernels = attention_kernels(bundle.folder, engine.name, device)
        except EngineUnavailableError as error:
            found[engine.name] = str(error)
        else:
            found[engine.name] = ", ".join(f"{kernel} in {n} nodes" for kernel, n in kernels.items())
    return found


def on_this_machine(status: BackendStatus, has_driver: bool | None) -> BackendStatus:
    """`status`, which without a GPU is told to nobody as something to install. None: nothing here can look for one."""
    if status.device == "cpu" or status.problem is None or has_driver:
        return status
    if has_driver is None:
        words = f"no NVIDIA GPU is known here (cuda-bindings would tell); where there is one: {status.problem}"
    else:
        words = "no NVIDIA GPU here: no driver was found (a container needs docker run --gpus all)"
        words += f"; it runs on compute capability {status.gpus}" if status.gpus else ""
    return replace(status, problem=words)


def find_problems(versions: dict[str, str | None], backends: list[BackendStatus]) -> list[str]:
    """What should be put right, and how."""
    problems = []
    if versions.get("onnxruntime") and versions.get("onnxruntime-gpu"):
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: uninstall both, "
            "then install the one that you need (mexma-runtime[cpu] or mexma-runtime[gpu])"
        )
    if all(backend.problem for backend in backends):
        problems.append("no backend works here: pip install 'mexma-runtime[cpu]'")
    return problems


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
