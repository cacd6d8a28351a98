"""From process start to the first vector, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mexma_runtime.errors import MexmaError

TEXT = "Where is the nearest station?"

_ENCODER = """
import sys
from mexma_runtime import Encoder
folder, n_threads, text = sys.argv[1:]
Encoder.load(folder, precision="fp32", n_threads=int(n_threads)).encode(text)
"""
_PYTORCH = """
import sys
import torch
from transformers import AutoModel, AutoTokenizer
model_folder, tokenizer_folder, n_threads, text = sys.argv[1:]
torch.set_num_threads(int(n_threads))
tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
model = AutoModel.from_pretrained(model_folder, dtype=torch.float32, attn_implementation="sdpa").eval()
with torch.inference_mode():
    model(**tokenizer(text, return_tensors="pt")).last_hidden_state[:, 0].numpy()
"""
# The monotonic clock is the machine's, not the process's. ru_maxrss would count what the parent held when it forked.
_REPORT = """
import time
reached_s = time.monotonic()
with open("/proc/self/status") as status:
    print(reached_s, next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """One start."""

    ms: float
    """From before the process was made until it held the vector."""
    peak_rss_bytes: int
    """Pages of mapped files included."""


def start_encoder(bundle: Path, n_threads: int) -> ColdStart:
    """Embed one sentence with the bundle's fp32 engine in a new process. Linux only."""
    return _start(_ENCODER, [str(bundle), str(n_threads), TEXT])


def start_pytorch(folder: Path, tokenizer_folder: Path, n_threads: int) -> ColdStart:
    """The same with transformers, from the checkpoint's folder, as the model card does it."""
    return _start(_PYTORCH, [str(folder), str(tokenizer_folder), str(n_threads), TEXT])


def _start(script: str, arguments: Sequence[str]) -> ColdStart:
    command = [sys.executable, "-c", script + _REPORT, *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    start_s = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MexmaError(f"a cold start failed in its own process:\n{done.stderr.strip()}")
    reached_s, peak_kib = done.stdout.split()[-2:]
    return ColdStart(ms=(float(reached_s) - start_s) * 1e3, peak_rss_bytes=int(peak_kib) * 1024)
