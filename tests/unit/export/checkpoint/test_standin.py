from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from mexma_export.checkpoint.standin import STANDINS, cached_standin, write_standin
from mexma_export.checkpoint.standin_weights import choose_outliers
from mexma_export.corpus.sample import load_sample
from mexma_runtime.errors import FileError, UsageError

TEXTS = [line.text for line in load_sample()[::25]]
VARIANTS = [("tiny", False), ("tiny", True), ("tiny-bert", False), ("tiny-bert", True)]


@dataclass(frozen=True, kw_only=True)
class Standin:
    name: str
    planted: bool
    folder: Path
    model: Any
    tokenizer: Any

    def hidden_states(self, text: str) -> list[torch.Tensor]:
        """After the embeddings and after every layer: `(tokens, hidden)`."""
        with torch.inference_mode():
            output = self.model(**self.tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        return [state[0] for state in output.hidden_states]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost a model this small far more than they save."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda variant: f"{variant[0]}{'-outliers' * variant[1]}")
def standin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Standin:
    name, planted = request.param
    folder = write_standin(name, tmp_path_factory.mktemp("standins") / name, outliers=planted)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return Standin(name=name, planted=planted, folder=folder, model=load(folder), tokenizer=tokenizer)


def load(folder: Path) -> Any:
    model, found = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    return model


def run(code: str, folder: Path) -> int:
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=False).returncode


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_sentence_transformers_computes_the_named_pooling(standin: Standin) -> None:
    encoder = SentenceTransformer(str(standin.folder), device="cpu")
    assert encoder.max_seq_length == 512
    for text in TEXTS[:4]:
        tokens = standin.hidden_states(text)[-1]
        expected = tokens[0] if standin.name == "tiny" else torch.nn.functional.normalize(tokens.mean(dim=0), dim=0)
        np.testing.assert_allclose(encoder.encode(text), expected, atol=1e-5)


def test_vectors_are_finite_and_not_all_alike(standin: Standin) -> None:
    vectors = torch.stack([standin.hidden_states(text)[-1][0] for text in TEXTS])
    unit = torch.nn.functional.normalize(vectors)
    cosines = (unit @ unit.T)[~torch.eye(len(TEXTS), dtype=torch.bool)]
    assert torch.isfinite(vectors).all()
    assert cosines.max() < 0.995
    assert cosines.mean() < 0.95


def test_tokens_of_a_sentence_are_not_all_alike(standin: Standin) -> None:
    tokens = torch.nn.functional.normalize(standin.hidden_states(TEXTS[1])[-1])
    assert (tokens[0] @ tokens[1:].T).max() < 0.99


def test_outliers_live_through_all_layers_but_the_last(standin: Standin) -> None:
    sizes = [state.abs().median(dim=0).values for state in standin.hidden_states(TEXTS[1])]
    dims = list(choose_outliers(STANDINS[standin.name].model, 0).dims)
    *ratios, last = [float(size[dims].min() / size.median()) for size in sizes]
    assert all((20 < ratio < 100) == standin.planted for ratio in ratios)
    assert last < 5


def test_outliers_after_gelu_are_rare_and_large(standin: Standin) -> None:
    seen: list[torch.Tensor] = []
    layers = standin.model.encoder.layer
    hooks = [layer.intermediate.register_forward_hook(lambda *call: seen.append(call[-1][0])) for layer in layers]
    for text in TEXTS:
        standin.hidden_states(text)
    for hook in hooks:
        hook.remove()
    for layer, channels in enumerate(choose_outliers(STANDINS[standin.name].model, 0).channels):
        values = torch.cat(seen[layer :: len(layers)]).numpy()
        planted, others = values[:, channels], np.delete(values, channels, axis=1)
        assert (planted.max() > 2 * others.max()) == standin.planted
        if standin.planted:
            assert (planted < 0.1).mean() > 0.25


def test_writes_the_same_bytes_in_another_process(standin: Standin, tmp_path: Path) -> None:
    call = f"write_standin({standin.name!r}, pathlib.Path('out'), outliers={standin.planted})"
    run(f"import pathlib, mexma_export.checkpoint.standin as s; s.{call}", tmp_path)
    assert contents(tmp_path / "out") == contents(standin.folder)


def test_fills_an_empty_folder_and_makes_parents(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    out.mkdir(parents=True)
    assert write_standin("tiny", out) == out
    assert write_standin("tiny", tmp_path / "c" / "d") == tmp_path / "c" / "d"
    assert contents(out) == contents(tmp_path / "c" / "d")
    assert "never for quality" in (out / "README.md").read_text()


def test_refuses_what_would_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for name in ("full", "full/notes.txt"):
        with pytest.raises(UsageError, match="empty folder"):
            write_standin("tiny", tmp_path / name)
    with pytest.raises(FileError, match="cannot be made a folder: File exists"):
        write_standin("tiny", tmp_path / "full" / "notes.txt" / "out")
    assert contents(tmp_path) == {"full/notes.txt": b"mine"}


def test_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mexma, base, small, tiny, tiny-bert"):
        write_standin("huge", tmp_path / "out")
    with pytest.raises(UsageError, match="mexma, base, small, tiny, tiny-bert"):
        cached_standin("../huge")


def test_too_little_disk_is_said_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**12, free=10**9))
    with pytest.raises(UsageError, match=r"needs 2\.30 GB of free disk, 1\.00 GB are there"):
        write_standin("mexma", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        assert list(tmp_path.iterdir())
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_standin("tiny", tmp_path / "out", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, small_files: int) -> None:
    with pytest.raises(FileError, match="out: cannot be written: File too large"):
        write_standin("tiny", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_that_does_not_say_its_size(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=0, free=0))
    assert contents(write_standin("tiny", tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_write_left_is_removed_and_a_live_one_spared(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, mexma_export.checkpoint.standin as s\n"
        "s.write_standin('tiny', pathlib.Path('out'), progress=lambda *_: os.kill(os.getpid(), 9))"
    )
    assert run(code, tmp_path) == -9
    (killed,) = tmp_path.iterdir()

    def write_another(done: int, total: int) -> None:
        if done == total:
            assert not killed.exists()
            write_standin("tiny", tmp_path / "out", seed=1)

    with pytest.raises(FileError, match="cannot be put there"):  # by now the other one is
        write_standin("tiny", tmp_path / "out", progress=write_another)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    load(tmp_path / "out")


def test_the_cache_is_written_once_and_keeps_variants_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEXMA_CACHE", str(tmp_path / "own"))
    first = cached_standin("tiny")
    stamp = (first / "model.safetensors").stat()
    assert first.is_relative_to(tmp_path / "own" / "standins")
    assert cached_standin("tiny") == first
    assert (first / "model.safetensors").stat() == stamp
    others = {cached_standin("tiny", seed=1), cached_standin("tiny", outliers=True), cached_standin("tiny-bert")}
    assert len({(folder / "model.safetensors").read_bytes() for folder in others | {first}}) == 4


def test_the_cache_is_where_the_system_keeps_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEXMA_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cached_standin("tiny").parent == tmp_path / "xdg" / "mexma-runtime" / "standins"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cached_standin("tiny").parent == tmp_path / ".cache" / "mexma-runtime" / "standins"


@pytest.mark.full_size
def test_full_size_loads_and_lacks_the_pooler_alone(tmp_path: Path) -> None:
    folder = write_standin("mexma", tmp_path / "mexma")
    assert (folder / "model.safetensors").stat().st_size == 2_235_408_584
    model: Any
    model, found = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert {key: sorted(names) for key, names in found.items() if names} == {
        "missing_keys": ["pooler.dense.bias", "pooler.dense.weight"]
    }
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        first, second = model(**tokenizer(TEXTS[:2], padding=True, return_tensors="pt")).last_hidden_state[:, 0]
    assert torch.cosine_similarity(first, second, dim=0) < 0.95
