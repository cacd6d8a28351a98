"""Why an NVIDIA GPU cannot be used here, in the order in which it would be noticed, and what to do about it."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mexma_runtime.backends.gpu.cuda_device import call, import_cudart
from mexma_runtime.errors import DeviceError, EngineUnavailableError

MIN_CAPABILITY = (7, 5)
"""CUDA 13 has no code for older GPUs (its release notes: Maxwell, Pascal and Volta were dropped)."""
MIN_DRIVERS = {12: "525", 13: "580"}
"""Of Linux, by the CUDA that they came with (NVIDIA's CUDA toolkit release notes)."""


@dataclass(frozen=True, kw_only=True)
class Library:
    """A shared library that onnxruntime's CUDA provider loads."""

    file: str
    folder: str
    """Where NVIDIA's Python package has it, below site-packages."""
    package: str


def libraries(cuda: int) -> tuple[Library, ...]:
    """What the provider of CUDA `cuda` links, in the order in which they depend on each other, and cuDNN."""
    if cuda >= 13:
        folder, suffix = f"nvidia/cu{cuda}/lib", ""
        folders = dict.fromkeys(("cuda-runtime", "cublas", "curand"), folder)
    else:
        suffix = f"-cu{cuda}"
        folders = {part: f"nvidia/{part.replace('-', '_')}/lib" for part in ("cuda-runtime", "cublas", "curand")}
    files = (
        ("cuda-runtime", f"libcudart.so.{cuda}"),
        ("cublas", f"libcublasLt.so.{cuda}"),
        ("cublas", f"libcublas.so.{cuda}"),
        ("curand", "libcurand.so.10"),
    )
    linked = [Library(file=file, folder=folders[part], package=f"nvidia-{part}{suffix}") for part, file in files]
    cudnn = Library(file="libcudnn.so.9", folder="nvidia/cudnn/lib", package=f"nvidia-cudnn-cu{cuda}")
    return (*linked, cudnn)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU that the driver lists."""

    index: int
    name: str
    capability: tuple[int, int]
    """Compute capability."""
    memory_bytes: int

    @property
    def description(self) -> str:
        """As certificates keep it."""
        return f"{self.name}, compute capability {self.capability_text}"

    @property
    def capability_text(self) -> str:
        """`9.0`."""
        return ".".join(map(str, self.capability))


def has_driver() -> bool:
    """Whether an NVIDIA driver is here, without which no GPU can be used."""
    return bool(call(import_cudart().cudaDriverGetVersion))


def all_gpus() -> list[Gpu]:
    """Every GPU that this process sees, good enough or not; none where there is no driver."""
    cudart = import_cudart()
    if not has_driver():
        return []
    return [_describe(cudart, index) for index in range(int(call(cudart.cudaGetDeviceCount)))]


ONNXRUNTIME = "onnxruntime-gpu"


def find_gpu(index: int, *, needed_cuda: int, needed_by: str = ONNXRUNTIME) -> Gpu:
    """The GPU `index`, if driver and architecture are good enough; EngineUnavailableError says what is not."""
    cudart = import_cudart()
    driver = int(call(cudart.cudaDriverGetVersion))
    if problem := driver_problem(driver, needed_cuda, needed_by):
        raise EngineUnavailableError(problem)
    try:
        n_gpus = int(call(cudart.cudaGetDeviceCount))
    except DeviceError as error:
        raise EngineUnavailableError(
            f"no GPU can be seen: {error}: look at nvidia-smi and CUDA_VISIBLE_DEVICES, and give a container its GPUs"
        ) from error
    gpus = [_describe(cudart, number) for number in range(n_gpus)]
    if index >= n_gpus:
        raise EngineUnavailableError(
            f"there is no cuda:{index}; this process sees {', '.join(f'cuda:{g.index} ({g.name})' for g in gpus)}"
        )
    if problem := capability_problem(gpus[index]):
        raise EngineUnavailableError(problem)
    return gpus[index]


def driver_problem(driver: int, needed_cuda: int, needed_by: str = ONNXRUNTIME) -> str | None:
    """What is wrong with the driver, whose newest CUDA is `driver` (1000 * major + 10 * minor; 0: there is none)."""
    least = MIN_DRIVERS.get(needed_cuda, "the newest")
    if driver == 0:
        return (
            f"no NVIDIA driver was found: install driver {least} or later; in a container, start it with the NVIDIA "
            "container toolkit (docker run --gpus all)"
        )
    if driver < needed_cuda * 1000:
        update = (
            f"the NVIDIA driver is for CUDA {driver // 1000}.{driver % 1000 // 10}, and this {needed_by} was built "
            f"for CUDA {needed_cuda}: update the driver to {least} or later"
        )
        if needed_by != ONNXRUNTIME:
            return update
        return (
            f"{update}, or install an onnxruntime-gpu for CUDA {driver // 1000} (onnxruntime.ai/docs/install has its "
            "package index)"
        )
    return None


def capability_problem(gpu: Gpu) -> str | None:
    """What is wrong with the GPU itself."""
    if gpu.capability >= MIN_CAPABILITY:
        return None
    least = ".".join(map(str, MIN_CAPABILITY))
    return (
        f"cuda:{gpu.index} is {gpu.description}, and CUDA 13 needs {least} or later (Turing): use another GPU, or "
        "the engines for CPUs (device='cpu')"
    )


def load_libraries(wanted: Sequence[Library]) -> None:
    """Load each library, from NVIDIA's package or the system's paths, so that onnxruntime finds it already there.

    EngineUnavailableError lists all that are missing, and the packages that bring them.
    """
    missing = [library for library in wanted if not _load(library)]
    if missing:
        packages = " ".join(dict.fromkeys(library.package for library in missing))
        raise EngineUnavailableError(
            f"onnxruntime's CUDAExecutionProvider cannot be loaded, {', '.join(library.file for library in missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing: pip install 'mexma-runtime[gpu]' (or {packages}), or add "
            "the folder of an installed CUDA toolkit to LD_LIBRARY_PATH"
        )


def _load(library: Library) -> bool:
    spec = importlib.util.find_spec(library.folder.split("/", maxsplit=1)[0])
    roots = [Path(root).parent for root in (spec.submodule_search_locations or [])] if spec else []
    for path in [*(root / library.folder / library.file for root in roots), Path(library.file)]:
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False


def _describe(cudart: Any, index: int) -> Gpu:
    properties = call(cudart.cudaGetDeviceProperties, index)
    return Gpu(
        index=index,
        name=bytes(properties.name).split(b"\0", maxsplit=1)[0].decode(),
        capability=(int(properties.major), int(properties.minor)),
        memory_bytes=int(properties.totalGlobalMem),
    )
