"""The step: `pytest -m gpu tests/gpu`, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from mexma_benchmarks.gpu_check.steps import Setup
from mexma_benchmarks.result.checks import Check, Record, at_least
from mexma_runtime.backends import backend_statuses
from mexma_runtime.errors import MexmaError

TIMEOUT_S, TIMEOUT_WITH_TENSORRT_S = 150.0, 1200.0
"""Building plans takes most of the latter."""
CHECKOUT = Path(__file__).parents[3]


def run_gpu_tests(setup: Setup, record: Record) -> None:
    """One row: the share of the tests that passed. A test that was skipped has not."""
    report, log = setup.out / "gpu-tests.xml", setup.out / "gpu-tests.log"
    counts = run_pytest(report, log)
    record.samples |= counts
    n_passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    said = f"{n_passed} passed, {counts['failures'] + counts['errors']} failed, {counts['skipped']} skipped"
    share = n_passed / counts["tests"] if counts["tests"] else 0.0
    record.checks.append(
        Check(what="GPU tests that pass", bar=at_least(1), measured=share, note=f"{said} ({log.name})")
    )


def run_pytest(report: Path, log: Path) -> dict[str, int]:
    """Counts of `tests`, `failures`, `errors` and `skipped`; MexmaError where pytest did not come to an end."""
    report.unlink(missing_ok=True)
    works = {status.name for status in backend_statuses() if status.problem is None}
    files = {"test_gpu": True, "test_tensorrt": "tensorrt" in works, "test_tensorrt_rtx": "tensorrt-rtx" in works}
    timeout_s = TIMEOUT_WITH_TENSORRT_S if "tensorrt" in works else TIMEOUT_S
    tests = [f"tests/gpu/{name}.py" for name, is_for_here in files.items() if is_for_here]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", *tests, "-p", "no:cacheprovider", "-q"]
    with log.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                [*command, f"--junitxml={report.absolute()}"],
                cwd=CHECKOUT,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            told = f"the GPU tests had not ended after {timeout_s:.0f} s: {log.name} has what they said"
            raise MexmaError(told) from None
    if not report.is_file():
        last = (log.read_text(encoding="utf-8").strip().splitlines() or ["nothing"])[-1]
        raise MexmaError(f"pytest ended with exit status {done.returncode} and said: {last}")
    suite = next(ET.parse(report).getroot().iter("testsuite"))
    return {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
