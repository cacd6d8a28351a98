"""Check every call of TensorRT, and of TensorRT for RTX, against the types of their real bindings.

NVIDIA's wheel tensorrt_cu13_bindings holds the compiled Python bindings alone. They link three libraries and take nine
functions from them; with empty ones in their place the module can be imported, and pybind11-stubgen reads each class,
enumeration and signature off it. Nothing of TensorRT runs. TensorRT for RTX is installed, and read as it is; its stubs
stand for TensorRT's too, since the same code calls both. The stubs are kept in .typings/VERSION; mypy then reads our
modules against each version. Needs pip, a C compiler and the network, the first time.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("10.16.1.11", "11.4.0.106")
RTX = "tensorrt_rtx"
CHECKED = (
    "runtime/mexma_runtime/backends/tensorrt_library.py",
    "runtime/mexma_runtime/backends/gpu/plans/session.py",
    "runtime/mexma_runtime/backends/gpu/plans/rtx_session.py",
    "export/mexma_export/targets/tensorrt/builder.py",
    "export/mexma_export/targets/tensorrt/plan_targets.py",
)
"""All that import tensorrt or tensorrt_rtx."""
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
EMPTY = """
void *createInferBuilder_INTERNAL(void *l, int v) { return 0; }
void *createInferRefitter_INTERNAL(void *e, void *l, int v) { return 0; }
void *createInferRuntime_INTERNAL(void *l, int v) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void *r, void *l, int v) { return 0; }
void *createNvOnnxParser_INTERNAL(void *n, void *l, int v) { return 0; }
void *getBuilderPluginRegistry(int c) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
void *getPluginRegistry(void) { return 0; }
int initLibNvInferPlugins(void *l, const char *n) { return 1; }
"""
MISTAKES = {
    "builder.build_engine(1)": "attr-defined",
    "builder.create_network('typed')": "arg-type",
    "trt.BuilderFlag.NO_SUCH_FLAG": "attr-defined",
}
RTX_MISTAKES = {
    "builder.create_builder_config().set_compute_capability('8.9', 0)": "arg-type",
    "trt.CudaGraphStrategy.NO_SUCH_STRATEGY": "attr-defined",
}
"""Calls that mypy has to refuse: it would refuse nothing if it did not see the stubs."""
_DEF = re.compile(r"^(\s*)def (\w+)\(.*\)( -> .*)?:\s*(\.\.\.)?\s*$")


def main() -> int:
    """Check all versions; the exit status."""
    versions, rtx = list(VERSIONS), None
    if importlib.util.find_spec(RTX):
        rtx = f"rtx-{importlib.metadata.version('tensorrt-rtx-cu13')}"
        versions.append(rtx)
    else:  # there is none for this kind of machine
        print("TensorRT for RTX: not installed, and not checked")
    for version in versions:
        stubs = ROOT / ".typings" / version
        if not (stubs / "tensorrt").is_dir():
            print(f"TensorRT {version}: making type stubs from its bindings")
            (make_rtx_stubs if version == rtx else make_stubs)(version, stubs)
        refuse_mistakes(version, stubs, MISTAKES | (RTX_MISTAKES if version == rtx else {}))
        done = mypy(stubs, *CHECKED)
        print(f"TensorRT {version}: {done.stdout.strip()}")
        if done.returncode:
            return done.returncode
    return 0


def make_stubs(version: str, out: Path) -> None:
    """Write `out`/tensorrt, whole or not at all."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check"]
        run(*pip, "--no-deps", "--only-binary=:all:", "-d", str(work), f"tensorrt_cu13_bindings=={version}")
        (wheel,) = work.glob("*.whl")
        shutil.unpack_archive(wheel, work / "site", "zip")
        (work / "empty.c").write_text(EMPTY)
        major = version.partition(".")[0]
        for library in LIBRARIES:
            file = f"lib{library}.so.{major}"
            run("cc", "-shared", "-fPIC", f"-Wl,-soname,{file}", "-o", str(work / file), str(work / "empty.c"))
        read_stubs("tensorrt", work, {"LD_LIBRARY_PATH": str(work), "PYTHONPATH": str(work / "site")})
        publish(work, out)


def make_rtx_stubs(version: str, out: Path) -> None:
    """The same of TensorRT for RTX, and `out`/tensorrt, which is all of it by the other name."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        read_stubs(RTX, work, {})
        alias = work / "whole" / "tensorrt" / "__init__.pyi"
        alias.parent.mkdir()
        alias.write_text(f"from {RTX} import *\nfrom {RTX} import __version__ as __version__\n")
        publish(work, out)


def read_stubs(package: str, work: Path, environment: dict[str, str]) -> None:
    """Write `work`/whole/PACKAGE, read off the module PACKAGE_bindings."""
    module = f"{package}_bindings"
    stubgen = [sys.executable, "-m", "pybind11_stubgen", module, "-o", str(work / "stubs"), "--ignore-all-errors"]
    run(*stubgen, environment=environment)
    for path in (work / "stubs" / module).rglob("*.pyi"):
        path.write_text(repaired(path.read_text().replace(module, package)))
    (work / "whole").mkdir()
    shutil.move(work / "stubs" / module, work / "whole" / package)


def publish(work: Path, out: Path) -> None:
    """Put `work`/whole in the place of `out`."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(work / "whole", out)


def repaired(text: str) -> str:
    """The stub with (*args, **kwargs) for the few argument lists that are not valid Python, and Python's own bool.

    TensorRT calls a number format `bool`, which hides it.
    """
    lines = text.splitlines()
    for number, found in enumerate(lines):
        line = re.sub(r"(?<![.\w])bool\b", "builtins.bool", found) if "def " in found else found
        lines[number] = line
        if (match := _DEF.match(line)) and not is_valid(line):
            indent, name, returns, body = match.groups()
            arguments = "*args: typing.Any, **kwargs: typing.Any"
            lines[number] = f"{indent}def {name}({arguments}){returns or ' -> typing.Any'}:{' ...' if body else ''}"
    whole = "\n".join(lines) + "\n"
    ast.parse(whole)
    first, rest = "from __future__ import annotations\n", whole.replace("from __future__ import annotations\n", "")
    # What is wrong in the stubs themselves is not ours.
    return f"# mypy: ignore-errors\n{first}import builtins\nimport typing\n{rest}"


def is_valid(line: str) -> bool:
    """Whether one line's signature can be parsed."""
    try:
        ast.parse(line.strip().removesuffix("...").rstrip().removesuffix(":") + ": ...")
    except SyntaxError:
        return False
    return True


def refuse_mistakes(version: str, stubs: Path, mistakes: dict[str, str]) -> None:
    """SystemExit unless mypy finds each of `mistakes`, which are calls and the codes of their errors."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mistakes.py"
        calls = "".join(f"    {mistake}\n" for mistake in mistakes)
        path.write_text(f"import tensorrt as trt\ndef wrong(builder: trt.Builder) -> None:\n{calls}")
        told = mypy(stubs, str(path)).stdout
    for number, (mistake, code) in enumerate(mistakes.items(), start=3):
        if f"mistakes.py:{number}: error" not in told or f"[{code}]" not in told:
            raise SystemExit(f"TensorRT {version}: mypy does not refuse {mistake}: the stubs are not read:\n{told}")


def mypy(stubs: Path, *paths: str) -> subprocess.CompletedProcess[str]:
    """mypy's answer on `paths`, reading the stubs."""
    environment = os.environ | {"MYPYPATH": str(stubs)}
    cache = f"--cache-dir={ROOT / '.mypy_cache' / stubs.name}"
    command = [sys.executable, "-m", "mypy", cache, *paths]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


def run(*command: str, environment: dict[str, str] | None = None) -> None:
    """Run `command`; SystemExit with what it said where it fails."""
    done = subprocess.run(command, env=os.environ | (environment or {}), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
