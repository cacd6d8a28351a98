"""SIGKILL at every step of an export: the old bundle works afterwards, and the next export leaves no litter."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from mexma_runtime import Encoder
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.companions import COMPANIONS
from mexma_runtime.bundle.manifest import MANIFEST_NAME
from mexma_runtime.errors import BundleError
from mexma_runtime.types import Vectors

DRIVER = """
import json, os, signal, sys
from pathlib import Path
from mexma_export.bundle.pipeline import export
from mexma_export.bundle.request import ExportRequest
from mexma_export.checkpoint.sources import resolve_source
from mexma_runtime.types import Precision

TOUCHING = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir"}

def dying_export(source, out, precisions, judged, last_step):
    # Steps are counted: each piece of weights, and each time that a file of the folder is about to be touched.
    # A last step that is a word is the first call of progress about something that begins with it.
    n_steps = 0
    def step():
        nonlocal n_steps
        n_steps += 1
        if n_steps == last_step:
            os.kill(os.getpid(), signal.SIGKILL)
    def progress(what, done, total):
        if what.startswith("writing"):
            step()
        if isinstance(last_step, str) and what.startswith(last_step):
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(lambda event, words: step() if event in TOUCHING and str(words[0]).startswith(out) else None)
    plan = ExportRequest(out=Path(out), precisions=tuple(map(Precision, precisions)), check_parity=judged)
    export(resolve_source(source), plan, progress=progress)

for line in sys.stdin:
    child = os.fork()
    if not child:
        dying_export(**json.loads(line))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

NEVER = 0
DyingExport = Callable[..., bool]
"""(out, precisions, last step) -> whether it was killed, rather than done."""


@pytest.fixture(scope="module")
def dying_export(tiny_checkpoint: Path) -> Iterator[DyingExport]:
    """Exports that kill themselves, each in a fork of one process that has imported everything."""
    command = [sys.executable, "-c", DRIVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        stdin, stdout = driver.stdin, driver.stdout
        assert stdin
        assert stdout

        def run(out: Path, precisions: list[str], last_step: int | str, *, judged: bool = False) -> bool:
            words = {"source": str(tiny_checkpoint), "out": str(out), "precisions": precisions}
            print(json.dumps(words | {"judged": judged, "last_step": last_step}), file=stdin, flush=True)
            code = int(stdout.readline())
            assert code in (0, -signal.SIGKILL)
            return code != 0

        yield run
        stdin.close()


@pytest.fixture(scope="module")
def old_bundle(dying_export: DyingExport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("killed") / "bundle"
    assert not dying_export(out, ["fp32"], NEVER)
    return out


def vectors_of(bundle: Path) -> Vectors:
    with Encoder.load(bundle, precision="fp32", verify=True, n_threads=1) as encoder:
        return encoder.encode(["one sentence", "and another"])


def engines_of(bundle: Path) -> set[str]:
    return {engine.name for engine in Bundle.open(bundle).manifest.engines}


def assert_clean(bundle: Path, engines: set[str]) -> None:
    manifest = Bundle.open(bundle, verify=True).manifest
    assert engines_of(bundle) == engines
    assert {path.name for path in bundle.iterdir()} == {entry.name for entry in manifest.files} | {
        MANIFEST_NAME,
        *COMPANIONS,
    }


FP32, FP16 = {"fused.fp32", "portable.fp32"}, {"fused.fp16", "portable.fp16"}


def test_a_killed_addition_leaves_the_old_bundle(dying_export: DyingExport, old_bundle: Path, tmp_path: Path) -> None:
    expected = vectors_of(old_bundle)
    seen = []
    out = tmp_path
    for last_step in count(1):
        out = tmp_path / str(last_step)
        shutil.copytree(old_bundle, out)
        for litter in (".new-weights.fp16", "weights.0123456789abcdef.bin"):  # of an earlier one that was killed
            (out / litter).write_bytes(b"x")
        if not dying_export(out, ["fp16"], last_step):
            break
        seen.append(engines_of(out))
        assert np.array_equal(vectors_of(out), expected)
        if last_step % 4 == 0:
            assert not dying_export(out, ["fp16"], NEVER)
            assert_clean(out, FP32 | FP16)
    assert_clean(out, FP32 | FP16)
    n_before = seen.index(FP32 | FP16)  # the rename of bundle.json lies between
    assert n_before > 30
    assert seen == [FP32] * n_before + [FP32 | FP16] * (len(seen) - n_before)


def test_a_killed_first_export_is_no_bundle_and_can_be_repeated(dying_export: DyingExport, tmp_path: Path) -> None:
    for n_killed in count():
        last_step = 1 + 6 * n_killed
        out = tmp_path / str(last_step)
        if not dying_export(out, ["fp32"], last_step):
            break
        if not (out / MANIFEST_NAME).exists():
            with pytest.raises(BundleError, match="not a bundle"):
                Bundle.open(out)
        assert not dying_export(out, ["fp32"], NEVER)
        assert_clean(out, FP32)
    assert len(list(tmp_path.iterdir())) > 5


def test_killed_while_engines_are_judged(dying_export: DyingExport, old_bundle: Path, tmp_path: Path) -> None:
    """With PyTorch and two engines in the process that dies."""
    out = tmp_path / "bundle"
    shutil.copytree(old_bundle, out)
    expected = vectors_of(out)
    assert dying_export(out, ["fp32", "fp16"], "judging fused.fp16", judged=True)
    assert len(list(out.iterdir())) > len(list(old_bundle.iterdir()))
    assert engines_of(out) == FP32
    assert np.array_equal(vectors_of(out), expected)
    assert not dying_export(out, ["fp16"], NEVER)
    assert_clean(out, FP32 | FP16)
