"""Where a measurement was made: machine, versions, commit and command line. Nothing that names a person or a host."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mexma_runtime.hardware import Hardware, detect_hardware

PACKAGES = ("mexma-runtime", "numpy", "onnxruntime", "tokenizers", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What stands beside every number; plain values, ready for JSON by `dataclasses.asdict`."""

    hardware: Hardware
    system: str
    """Kernel's name, release and machine type."""
    python: str
    versions: dict[str, str | None]
    """None: not installed."""
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


def detect_environment(module: str) -> Environment:
    """Describe this process, started as `python -m module`."""
    prefixes = ("OMP_", "MKL_", "KMP_", "ONEDNN_", "DNNL_", "ORT_", "RAYON_", "TOKENIZERS_", "ATEN_CPU_")
    return Environment(
        hardware=detect_hardware(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions={package: _version(package) for package in PACKAGES},
        commit=read_commit(Path(__file__).parent),
        command=("python", "-m", module, *(Path(a).name if Path(a).is_absolute() else a for a in sys.argv[1:])),
        variables={name: value for name, value in sorted(os.environ.items()) if name.startswith(prefixes)},
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        load_average=os.getloadavg()[0],
    )


def read_commit(folder: Path) -> str | None:
    """The commit of the checkout that `folder` is tracked in, `+changes` behind it where files differ from it."""
    if _git(folder, "ls-files", ".") is None:  # nothing tracked: an installed package inside someone else's checkout
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if commit and changes else commit


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None for nothing, an error, or no git."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
