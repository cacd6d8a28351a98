"""Bundles whose files are links: as the hub's client, volumes and other disks have them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mexma_runtime import Encoder
from mexma_runtime.backends import onnxruntime_library
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.linked_files import is_linked, map_graph, relocated
from mexma_runtime.errors import BundleError
from mexma_runtime.types import Dialect

TEXTS = ["The ferry leaves at noon.", "Interest rates rose again, and nobody knew why."]

Keep = Callable[[Path, Path], Path]


def hub_cache(bundle: Path, tmp: Path) -> Path:
    """All files in one folder, by their hashes."""
    return _hub_cache(bundle, tmp, lambda digest: digest)


def sharded_hub_cache(bundle: Path, tmp: Path) -> Path:
    """Each in a folder of its own, by the beginnings of their hashes."""
    return _hub_cache(bundle, tmp, lambda digest: f"{digest[:2]}/{digest}")


def _hub_cache(bundle: Path, tmp: Path, place: Callable[[str], str]) -> Path:
    repository = tmp / "models--me--bundle"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for path in bundle.iterdir():
        blob = repository / "blobs" / place(hashlib.sha256(path.read_bytes()).hexdigest())
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.relative_to(repository / "blobs"))
    return snapshot


def volume(bundle: Path, tmp: Path) -> Path:
    """A volume of Kubernetes: each file a link into a folder that is a link."""
    shutil.copytree(bundle, tmp / "volume" / "..2026_11")
    (tmp / "volume" / "..data").symlink_to("..2026_11")
    for path in bundle.iterdir():
        (tmp / "volume" / path.name).symlink_to(f"..data/{path.name}")
    return tmp / "volume"


def weights_elsewhere(bundle: Path, tmp: Path) -> Path:
    """The weights on another disk."""
    folder, far = tmp / "bundle", tmp / "far"
    shutil.copytree(bundle, folder)
    far.mkdir()
    for path in folder.glob("weights.*"):
        path.rename(far / path.name)
        path.symlink_to(far / path.name)
    return folder


def all_elsewhere(bundle: Path, tmp: Path) -> Path:
    """All files in another folder, under their own names."""
    (tmp / "links").mkdir()
    for path in bundle.iterdir():
        (tmp / "links" / path.name).symlink_to(path)
    return tmp / "links"


def no_unicode(bundle: Path, tmp: Path) -> Path:
    """In a folder whose name is of another encoding."""
    return Path(shutil.copytree(bundle, tmp / "caf\udce9"))


KEEPS = [hub_cache, sharded_hub_cache, volume, weights_elsewhere, all_elsewhere, no_unicode]


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_bundle_opens_wherever_its_files_lie(tiny_bundle: Path, tmp_path: Path, keep: Keep, backend: str) -> None:
    folder = keep(tiny_bundle, tmp_path)
    engines = [
        engine.name
        for engine in Bundle.open(tiny_bundle).manifest.engines
        if backend in engine.requires and engine.dialect is not Dialect.PACKED
    ]
    assert engines
    for engine in engines:
        with (
            Encoder.load(tiny_bundle, engine=engine, backend=backend) as plain,
            Encoder.load(folder, engine=engine, backend=backend) as linked,
        ):
            np.testing.assert_array_equal(linked.encode(TEXTS), plain.encode(TEXTS), err_msg=engine)


def test_onnxruntime_maps_linked_weights_itself(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it is handed over it would copy; before 1.21 there was no other way."""

    def refuse(*_: object) -> None:
        raise AssertionError

    folder = sharded_hub_cache(tiny_bundle, tmp_path)
    monkeypatch.setattr(onnxruntime_library, "map_graph", refuse)
    with Encoder.load(folder, backend="onnxruntime") as encoder:
        vectors = encoder.encode(TEXTS)
    monkeypatch.undo()
    monkeypatch.setattr(onnxruntime_library, "FINDS_WEIGHTS", (999,))
    with Encoder.load(folder, backend="onnxruntime") as encoder:
        np.testing.assert_array_equal(encoder.encode(TEXTS), vectors)


def test_a_linked_folder_is_no_linked_file(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tiny_bundle)
    for folder in (tmp_path / "link", volume(tiny_bundle, tmp_path)):
        bundle = Bundle.open(folder)
        assert not any(is_linked(bundle, engine) for engine in bundle.manifest.engines)


def test_weights_are_those_of_the_graph(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    for engine in bundle.manifest.engines:
        mapped = map_graph(bundle, engine)
        model = onnx.load(bundle.path(engine.file))
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        assert mapped.weights
        for tensor in mapped.weights:
            np.testing.assert_array_equal(tensor.values, values.pop(tensor.name))
        detached = onnx.load_from_string(mapped.with_weights_as_inputs())
        onnx.checker.check_model(detached, full_check=engine.dialect is Dialect.PORTABLE)
        assert {tensor.name for tensor in detached.graph.initializer} == set(values)
        inputs = [value.name for value in detached.graph.input]
        assert inputs == engine.inputs + [tensor.name for tensor in mapped.weights]
        assert detached.graph.node == model.graph.node


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"no graph at all", b"\x3a\x7f"])
def test_what_is_no_graph_is_told(tiny_bundle: Path, tmp_path: Path, content: bytes) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    engine = bundle.manifest.engines[0]
    bundle.path(engine.file).write_bytes(content)
    for read in (map_graph, relocated) if content else (map_graph,):
        with pytest.raises(BundleError, match=engine.file):
            read(bundle, engine)
