from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from mexma_export.checkpoint.tensors import CHUNK_BYTES, INDEX, SINGLE, chunks, read_headers, weight_files, whole
from mexma_runtime.errors import CheckpointError, FileError


def write_header(path: Path, tensors: dict[str, Any], *, padding: int = 0) -> int:
    """A safetensors file without its data, as another program may lay it out; returns where the data belongs."""
    header = json.dumps({"__metadata__": {"format": "pt"}} | tensors).encode() + b" " * padding
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return 8 + len(header)


def test_one_file_comes_before_an_index(tmp_path: Path) -> None:
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / SINGLE)
    (tmp_path / INDEX).write_text("{}", encoding="utf-8")
    assert weight_files(tmp_path) == [tmp_path / SINGLE]


def test_parts_are_those_of_the_index_in_name_order(tmp_path: Path) -> None:
    for name in ("b.safetensors", "a.safetensors", "other.safetensors"):
        save_file({name: np.zeros(2, np.float32)}, tmp_path / name)
    weight_map = {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    assert weight_files(tmp_path) == [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": null}', "\udcff"])
def test_an_index_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json: expected an object with a weight_map"):
        weight_files(tmp_path)


def test_missing_parts_are_all_named_and_none_outside_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "outside.safetensors")
    weight_map = {"a": "../outside.safetensors", "b": "model-2.safetensors", "c": 3}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        weight_files(folder)
    assert caught.value.problems == [
        f"{INDEX} names {name}, which is missing" for name in ("../outside.safetensors", "3", "model-2.safetensors")
    ]


def test_a_pickle_is_refused_with_the_reason_and_the_way_on(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(CheckpointError, match=r"pickle, which runs code when opened.*save_pretrained\(\)"):
        weight_files(tmp_path)


def test_a_folder_in_place_of_the_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / SINGLE).mkdir()
    with pytest.raises(CheckpointError, match=f"{SINGLE} is a folder: expected a file"):
        weight_files(tmp_path)


def test_headers_say_shape_and_type_of_every_tensor(tmp_path: Path) -> None:
    save_file({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.int64)}, tmp_path / "1.safetensors")
    save_file({"c": np.zeros((), np.float16)}, tmp_path / "2.safetensors")
    tensors, problems = read_headers([tmp_path / "1.safetensors", tmp_path / "2.safetensors"])
    assert problems == []
    found = {name: (info.shape, info.dtype, info.is_readable, info.file.name) for name, info in tensors.items()}
    assert found == {
        "a": ((2, 3), "F32", True, "1.safetensors"),
        "b": ((4,), "I64", False, "1.safetensors"),
        "c": ((), "F16", True, "2.safetensors"),
    }


def test_a_tensor_in_two_files_is_a_problem(tmp_path: Path) -> None:
    files = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    for file in files:
        save_file({"a": np.zeros(2, np.float32)}, file)
    assert read_headers(files)[1] == ["a: stands in 1.safetensors and again in 2.safetensors"]


@pytest.mark.parametrize("damage", ["empty", "cut", "header", "missing"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    for file in (good, bad):
        save_file({file.stem: np.ones(100, np.float32)}, file)
    data = bytearray(bad.read_bytes())
    match damage:
        case "empty":
            bad.write_bytes(b"")
        case "cut":
            bad.write_bytes(data[:-1])
        case "header":
            data[8] = 0xFF
            bad.write_bytes(data)
        case "missing":
            bad.unlink()
    tensors, (problem,) = read_headers([bad, good])
    assert set(tensors) == {"good"}
    assert problem.startswith("bad.safetensors: cannot be read as safetensors (")
    assert problem.endswith("): download it again")


def test_a_file_without_rights_is_no_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": np.ones(100, np.float32)}, path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user reads everything")
    with pytest.raises(FileError, match=r"a\.safetensors: cannot be read: Permission denied: give this user the right"):
        read_headers([path])


@given(
    kind=st.sampled_from(["F32", "F16", "BF16"]),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    padding=st.integers(0, 7),
    seed=st.integers(0, 9),
)
def test_every_type_widens_without_loss_wherever_it_lies(
    tmp_path_factory: pytest.TempPathFactory, kind: str, shape: tuple[int, ...], padding: int, seed: int
) -> None:
    types: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    array: NDArray[Any] = np.random.default_rng(seed).standard_normal(shape).astype(types[kind])
    file = tmp_path_factory.mktemp("tensors") / SINGLE
    entry = {"dtype": kind, "shape": shape, "data_offsets": [4, 4 + array.nbytes]}
    write_header(file, {"first": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": entry}, padding=padding)
    with file.open("ab") as opened:
        opened.write(bytes(4) + array.tobytes())
    tensors, problems = read_headers([file])
    assert problems == []
    read = whole(tensors["a"])
    assert read.dtype == np.float32
    assert read.tobytes() == array.astype(np.float32).tobytes()
    assert read.shape == shape


def test_large_tensors_come_in_slices(tmp_path: Path) -> None:
    shape = (40, 1 << 20)
    start = write_header(tmp_path / SINGLE, {"a": {"dtype": "F16", "shape": shape, "data_offsets": [0, 80 << 20]}})
    with (tmp_path / SINGLE).open("r+b") as file:
        file.truncate(start + (80 << 20))  # sparse: takes no disk
    tensors, _ = read_headers([tmp_path / SINGLE])
    sizes = [(chunk.shape, chunk.nbytes) for chunk in chunks(tensors["a"])]
    assert sum(rows for (rows, _), _ in sizes) == 40
    assert len(sizes) == 3
    assert max(nbytes for _, nbytes in sizes) <= CHUNK_BYTES
