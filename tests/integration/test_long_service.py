"""A service over ten minutes: hardly any shape comes twice, or many callers do what they like: `pytest -m soak -s`.

`-m 'soak and full_size'` are those of MEXMA's size.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from mexma_benchmarks.gpu_check.tensorrt import quick_recipe
from mexma_export.bundle.pipeline import export
from mexma_export.bundle.request import ExportRequest
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.checkpoint.standin import write_standin
from mexma_export.corpus.sample import load_sample
from mexma_export.quantize.options import QuantizationOptions
from mexma_export.quantize.recipe import load_recipe
from mexma_runtime.types import PADDED_DIALECTS, Precision

SECONDS = 600
SERVE = """
import random, sys, time
import numpy as np
from mexma_runtime import Encoder, Ragged

folder, backend, engine, seconds = sys.argv[1:]
encoder = Encoder.load(folder, engine=engine, backend=backend)
random, start, samples = random.Random(1), time.monotonic(), []
def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
loaded = resident_mb()
while (passed := time.monotonic() - start) < float(seconds):
    n = random.choice([1, 1, 2, 3, 5, 9, 17, 33, 60])
    rows = [[0, *range(5, 5 + random.randint(0, 254)), 2] for _ in range(n)]
    encoder.encode_ids(Ragged.from_sequences(rows))
    samples.append((passed / float(seconds), resident_mb()))
share, mb = np.array(samples).T
print(len(mb), loaded, np.median(mb[(share > 1 / 3) & (share < 2 / 3)]), np.median(mb[share > 2 / 3]), mb.max())
"""
CALL = """
import random, sys, threading, time
from collections import Counter
import numpy as np
from mexma_runtime import Encoder, EncodeCancelledError, EncodeTimeoutError, EncoderBusyError

folder, backend, engine, seconds = sys.argv[1:]
encoder = Encoder.load(folder, engine=engine, backend=backend, max_waiting=56)
first = "The ferry leaves at noon."
encoder.warmup()
expected = encoder.encode(first)
words = "ferry noon bread oven station music rain winter letter garden".split()
until, outcomes, samples = time.monotonic() + float(seconds), Counter(), []

def call(seed):
    draw = random.Random(seed)
    while time.monotonic() < until:
        n, cancel = draw.choice([1, 1, 1, 1, 2, 5, 17, 60]), threading.Event()
        texts = [first] + [" ".join(draw.choices(words, k=draw.randint(1, 60))) for _ in range(n - 1)]
        if draw.random() < 0.1:
            threading.Timer(draw.expovariate(1), cancel.set).start()
        try:
            vectors = encoder.encode(texts, timeout=draw.choice([None, 0.01, 1, 30]), cancel=cancel)
        except (EncodeCancelledError, EncodeTimeoutError, EncoderBusyError) as error:
            outcomes[type(error).__name__] += 1
            time.sleep(0.05)
        else:
            outcomes["answered" if np.allclose(vectors[0], expected, atol=1e-5) else "wrong"] += 1

threads = [threading.Thread(target=call, args=(seed,), daemon=True) for seed in range(64)]
for thread in threads:
    thread.start()
while time.monotonic() < until:
    time.sleep(1)
    samples.append(int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6)
for thread in threads:
    thread.join(60)
print(sum(thread.is_alive() for thread in threads), encoder._scheduler.n_waiting, dict(outcomes))
print(*samples)
"""
WITHOUT_THREAD_CACHES = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
"""glibc keeps up to 0.25 MB for each thread of what it has freed: 64 callers' fill for minutes, a tenth of MiniLM."""


@pytest.fixture(scope="module")
def minilm_bundle(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 in fp32 and int8."""
    out = tmp_path_factory.mktemp("served") / "minilm"
    precisions, int8 = (Precision.FP32, Precision.INT8), QuantizationOptions(recipes=(load_recipe("fast"),))
    request = ExportRequest(
        out=out, precisions=precisions, dialects=PADDED_DIALECTS, quantization=int8, check_parity=False
    )
    export(resolve_source(str(minilm_folder)), request)
    return out


@pytest.mark.soak
@pytest.mark.parametrize(
    ("backend", "engine"),
    [
        ("onnxruntime", "fused.fp32"),
        ("onnxruntime", "fused.int8.fast.uint8"),
        ("openvino", "portable.fp32"),
        ("openvino", "portable.int8.fast.uint8"),
    ],
)
def test_memory_levels_off(minilm_bundle: Path, backend: str, engine: str) -> None:
    command = [sys.executable, "-c", SERVE, str(minilm_bundle), backend, engine, str(SECONDS)]
    served = subprocess.run(command, capture_output=True, text=True, check=True)

    n_calls, loaded, middle, last, most = map(float, served.stdout.split())
    print(f"{engine}: {n_calls:.0f} calls; MB: {loaded:.0f}, {middle:.0f}, {last:.0f}, at most {most:.0f}")
    assert last < 1.05 * middle + 10


@pytest.fixture(scope="module")
def full_size_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in of MEXMA's size in int8. Quantized without a search, by few texts; smoothed, as `fast` is."""
    folder = tmp_path_factory.mktemp("served")
    texts, out = folder / "texts.txt", folder / "bundle"
    texts.write_text("\n".join(line.text for line in load_sample()[:100]), encoding="utf-8")
    recipe = dataclasses.replace(quick_recipe("fast"), smoothquant_alphas=(0.6,))
    int8 = QuantizationOptions(recipes=(recipe,), calibration=texts)
    request = ExportRequest(
        out=out, precisions=(Precision.INT8,), dialects=PADDED_DIALECTS, quantization=int8, check_parity=False
    )
    export(resolve_source(str(write_standin("mexma", folder / "checkpoint"))), request)
    return out


@pytest.mark.soak
@pytest.mark.parametrize(
    ("served", "backend", "engine"),
    [
        ("minilm_bundle", "onnxruntime", "fused.fp32"),
        ("minilm_bundle", "openvino", "portable.fp32"),
        pytest.param("full_size_bundle", "onnxruntime", "fused.int8.unsearched.uint8", marks=pytest.mark.full_size),
        pytest.param("full_size_bundle", "openvino", "portable.int8.unsearched.uint8", marks=pytest.mark.full_size),
    ],
)
def test_many_callers_are_all_answered_or_refused(
    request: pytest.FixtureRequest, served: str, backend: str, engine: str
) -> None:
    folder = request.getfixturevalue(served)
    command = [sys.executable, "-c", CALL, str(folder), backend, engine, str(SECONDS)]
    environment = os.environ | (WITHOUT_THREAD_CACHES if served == "minilm_bundle" else {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    left, rss = done.stdout.splitlines()
    mb = [float(sample) for sample in rss.split()]
    minute = len(mb) // 10
    second, last = median(mb[minute : 2 * minute]), median(mb[-minute:])
    print(f"{engine}: {left}; MB: {second:.0f} in the second minute, {last:.0f} in the last, {max(mb):.0f} at most")
    assert left.startswith("0 0 ")
    assert done.stderr == ""
    assert "wrong" not in left
    assert all(kind in left for kind in ("answered", "EncodeTimeoutError", "EncodeCancelledError", "EncoderBusyError"))
    assert last <= 1.03 * second
