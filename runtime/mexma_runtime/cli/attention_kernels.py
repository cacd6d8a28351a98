"""Which attention kernel onnxruntime runs on a GPU: read from its own debug output, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from mexma_runtime.errors import EngineUnavailableError, MexmaError
from mexma_runtime.types import Ragged

SWITCH = "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO"
"""Makes onnxruntime print a line for each attention node that it runs."""
TIMEOUT_S = 300
PROBE_TOKENS = (32, 9)
"""Sentences of so many tokens are run, together."""

_LINE = re.compile(r"Operator=\S+(?: Node=(?P<node>\S+))? DataType=\S+ SdpaKernel=(?P<kernel>[A-Z_]+)")


def attention_kernels(bundle: Path, engine: str, device: str) -> dict[str, int]:
    """Kernel, as onnxruntime names it (`FLASH_ATTENTION`, ...) -> number of nodes of `engine` that ran it on `device`.

    Raises EngineUnavailableError where the engine does not run there, or the release of onnxruntime prints nothing.
    """
    command = [sys.executable, "-m", "mexma_runtime.cli.attention_kernels", str(bundle), engine, device]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, SWITCH: "1"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EngineUnavailableError(f"engine {engine} on {device} had not run after {TIMEOUT_S} s") from None
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineUnavailableError(f"engine {engine} did not run on {device}: {reason}")
    found = parse_kernels(done.stdout)
    if not found:
        raise EngineUnavailableError(f"engine {engine} ran on {device}, and onnxruntime printed no attention kernels")
    return found


def parse_kernels(output: str) -> dict[str, int]:
    """Kernel -> nodes that ran it, of what onnxruntime has printed; a node that ran twice counts once a kernel."""
    ran = {(match["node"] or str(number), match["kernel"]) for number, match in enumerate(_LINE.finditer(output))}
    return dict(Counter(kernel for _, kernel in sorted(ran)))


def _run(bundle: str, engine: str, device: str) -> None:
    from mexma_runtime.encoder import Encoder

    graphs = None if device == "cpu" else "never"
    with Encoder.load(bundle, engine=engine, device=device, graphs=graphs) as encoder:
        encoder.encode_ids(Ragged.from_sequences([[0] * min(n, encoder.info.max_tokens) for n in PROBE_TOKENS]))


if __name__ == "__main__":
    try:
        _run(*sys.argv[1:])
    except MexmaError as error:
        sys.exit(str(error))
