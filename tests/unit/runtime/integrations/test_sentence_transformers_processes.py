from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mexma_runtime import Encoder

pytest.importorskip("sentence_transformers")

import torch
from sentence_transformers import SentenceTransformer

from mexma_runtime.integrations.sentence_transformers import OPENING, BundleModule


def opened(folder: Path, **options: Any) -> SentenceTransformer:
    return SentenceTransformer(str(folder), trust_remote_code=True, **options)


def test_a_copy_is_of_its_own(tiny: Path) -> None:
    model = opened(tiny, model_kwargs={"n_threads": 1})
    expected = model.encode(["the cat"])

    shallow = copy.copy(model)
    shallow.truncate_dim = 3
    assert (shallow.encode("the cat").shape, model.encode("the cat").shape) == ((3,), (8,))
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        np.testing.assert_array_equal(other.encode(["the cat"]), expected)
        assert other[0].encoder is not model[0].encoder
        assert other[0].encoder.info.n_threads == 1


def test_threads_share_one_encoder(tiny: Path) -> None:
    module = BundleModule(tiny)
    with ThreadPoolExecutor(8) as pool:
        assert len({id(encoder) for encoder in pool.map(lambda _: module.encoder, range(16))}) == 1


def test_a_fork_opens_its_own(tiny: Path) -> None:
    module = BundleModule(tiny, n_threads=1)
    expected = module(module.preprocess(["the cat"]))["sentence_embedding"]
    assert _in_a_fork(lambda: torch.equal(module(module.preprocess(["the cat"]))["sentence_embedding"], expected))


def test_a_fork_waits_for_a_thread_that_opens(minilm_bundle: Path) -> None:
    modules = [BundleModule(minilm_bundle, n_threads=1) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        encoders = pool.map(lambda module: module.encoder, modules)
        while not OPENING.locked():
            time.sleep(0)
        assert _in_a_fork(lambda: modules[0].preprocess(["the cat"])["input_ids"].shape == (1, 4))
        assert all(encoder.info.dim == 384 for encoder in encoders)


def _in_a_fork(check: Callable[[], bool]) -> bool:
    """Whether `check` holds in a fork of this process, which is ended where it hangs."""
    child = os.fork()
    if not child:
        signal.alarm(60)
        status = 1
        with suppress(BaseException):
            status = 0 if check() else 2
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_pool_of_processes(minilm_bundle: Path, encoder: Encoder, tmp_path: Path) -> None:
    script = tmp_path / "pool.py"
    script.write_text(
        "import sys\n"
        "import numpy as np\n"
        "from sentence_transformers import SentenceTransformer\n"
        "if __name__ == '__main__':\n"
        "    model = SentenceTransformer(sys.argv[1], trust_remote_code=True, model_kwargs={'n_threads': 1})\n"
        "    texts = [f'text number {i}' for i in range(40)]\n"
        "    pool = model.start_multi_process_pool(['cpu', 'cpu'])\n"
        "    np.save(sys.argv[2], model.encode(texts, pool=pool, chunk_size=10, prompt_name='query'))\n"
        "    model.stop_multi_process_pool(pool)\n",
        encoding="utf-8",
    )
    subprocess.run([sys.executable, str(script), str(minilm_bundle), str(tmp_path / "v.npy")], check=True)

    texts = [f"text number {i}" for i in range(40)]
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), encoder.encode_query(texts))
