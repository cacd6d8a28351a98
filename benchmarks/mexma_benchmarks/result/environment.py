"""Where a measurement was made: machine, versions, commit and command line. Nothing that names a person or a host."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mexma_runtime.hardware import Hardware, detect_hardware

MODULES = ("numpy", "onnxruntime", "tokenizers", "torch", "transformers")
"""That measure or are measured."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What stands beside every number; plain values, ready for JSON by `dataclasses.asdict`."""

    hardware: Hardware
    gpus: tuple[str, ...]
    """Name, memory and driver of each, as nvidia-smi tells them."""
    system: str
    """Kernel's name, release and machine type."""
    python: str
    versions: dict[str, str | None]
    """Of the packages whose modules would be imported, by the packages' own names; None: not installed."""
    commit: str | None
    """Of the checkout, with `+changes` where files differ from it; None outside a checkout."""
    command: tuple[str, ...]
    """Absolute paths by their last part alone."""
    variables: dict[str, str]
    """Environment variables that change threads or instruction sets, as far as they are set."""
    started: str
    """ISO 8601, UTC."""
    load_average: float
    """Processes that ran or waited over the last minute when it started: near 0 on an idle machine."""


def detect_environment(program: Sequence[str]) -> Environment:
    """Describe this process, started as `program` (`("mexma",)`, `("python", "-m", MODULE)`) with its arguments."""
    prefixes = ("OMP_", "MKL_", "KMP_", "ONEDNN_", "DNNL_", "ORT_", "RAYON_", "TOKENIZERS_", "ATEN_CPU_")
    return Environment(
        hardware=detect_hardware(),
        gpus=tuple(_nvidia_smi("--query-gpu=name,memory.total,driver_version")),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions={"mexma-runtime": _version("mexma-runtime")} | _versions(),
        commit=read_commit(Path(__file__).parent),
        command=(*program, *map(_without_folder, sys.argv[1:])),
        variables={name: value for name, value in sorted(os.environ.items()) if name.startswith(prefixes)},
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        load_average=os.getloadavg()[0],
    )


def _without_folder(argument: str) -> str:
    """`--out=/a/b` as `--out=b`."""
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{Path(value).name}" if Path(value).is_absolute() else argument


def read_commit(folder: Path) -> str | None:
    """The commit of the checkout that `folder` is tracked in, `+changes` behind it where files differ from it."""
    if _git(folder, "ls-files", ".") is None:  # nothing tracked: an installed package inside someone else's checkout
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if commit and changes else commit


def device_bytes(pid: int) -> int | None:
    """GPU memory that a process holds; None where there is no GPU, or it uses none. Never run on a GPU yet."""
    rows = (line.split(", ") for line in _nvidia_smi("--query-compute-apps=pid,used_memory", "nounits"))
    held = [int(mib) for process, mib in rows if int(process) == pid]
    return sum(held) << 20 if held else None


def _nvidia_smi(query: str, *formats: str) -> list[str]:
    """Lines of comma-separated values; none where there is no such program."""
    command = ["nvidia-smi", query, "--format=" + ",".join(("csv", "noheader", *formats))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None for nothing, an error, or no git."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def module_versions(module: str) -> dict[str, str | None]:
    """The package that brings `module` as it would be imported here -> its version, read from what lies beside it.

    Two that lie in one folder overwrite each other, as onnxruntime and onnxruntime-gpu do: both are named then. None
    stands for a module that is not there, or without its package's description.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return {module: None}
    file = Path(spec.origin)
    beside = importlib.metadata.distributions(path=[str(file.parents[1])])
    owners = (one for one in beside if _normalized(one.name).startswith(module))
    found = {one.name: one.version for one in owners if f"{module}/{file.name}" in map(str, one.files or ())}
    return {**found} or {module: None}


def _versions() -> dict[str, str | None]:
    return {package: version for module in MODULES for package, version in module_versions(module).items()}


def _normalized(package: str) -> str:
    return package.lower().replace("-", "_")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
