"""Triton's model repository: its configuration by Triton's own schema, its graph on what Triton would feed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from mexma_export.bundle.pipeline import export
from mexma_export.bundle.request import ExportRequest
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.targets.triton import (
    IDS,
    LENGTHS,
    MAX_BATCH_SIZE,
    choose_engine,
    write_onnxruntime_model,
    write_tensorrt_model,
)
from mexma_runtime import Encoder
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.plans import Plan
from mexma_runtime.errors import EngineUnavailableError, FileError, UsageError
from mexma_runtime.types import Dialect, Precision, Ragged, Vectors


def config_of(folder: Path) -> Any:
    """config.pbtxt, read by Triton's protobuf schema: an unknown field or a wrong value is an error."""
    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


class Served:
    """A bundle's model as Triton's onnxruntime backend loads it."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        plan = ExportRequest(
            out=folder / "bundle", precisions=(Precision.FP32,), dialects=(Dialect.FUSED,), check_parity=False
        )
        export(resolve_source(str(checkpoint)), plan)
        self.bundle = Bundle.open(folder / "bundle")
        entry = choose_engine(self.bundle, precisions=(), engine=None)
        self.folder = write_onnxruntime_model(self.bundle, entry, folder / "repository", name="mexma")
        self._session = ort.InferenceSession(str(self.folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"])

    def batched(self, ragged: Ragged) -> Vectors:
        """As ragged batching lays out requests: ids end to end, and the shape of each item."""
        feeds = {IDS: ragged.ids, LENGTHS: ragged.lengths.astype(np.int32)}
        (vectors,) = self._session.run(["sentence_embedding"], feeds)
        result: Vectors = vectors
        return result

    @property
    def names(self) -> list[str]:
        return [value.name for value in self._session.get_inputs()]


@pytest.fixture(scope="module", params=["tiny_checkpoint", "tiny_bert_checkpoint"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """CLS pooling and positions after padding; mean pooling, positions from zero, vectors of length 1."""
    return Served(request.getfixturevalue(request.param), tmp_path_factory.mktemp("triton"))


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9))
def test_vectors_are_the_encoders_whatever_is_batched_together(served: Served, seed: int, lengths: list[int]) -> None:
    padding = served.bundle.manifest.text.padding_id
    random = np.random.default_rng(seed)
    ids = random.integers(0, 500, sum(lengths)).astype(np.int32)
    ids[random.random(ids.size) < 0.1] = padding  # a text may contain it
    ragged = Ragged.from_lengths(ids, lengths)
    with Encoder.from_bundle(served.bundle, backend="onnxruntime", n_threads=1) as encoder:
        expected = encoder.encode_ids(ragged)
    np.testing.assert_allclose(served.batched(ragged), expected, atol=2e-5)


def test_the_configuration_is_tritons_and_fits_the_graph(served: Served) -> None:
    config = config_of(served.folder)
    assert (config.name, config.backend, config.max_batch_size) == ("mexma", "onnxruntime", MAX_BATCH_SIZE)
    (ids,) = config.input
    assert (ids.name, list(ids.dims), ids.allow_ragged_batch) == (IDS, [-1], True)
    assert ids.data_type == model_config_pb2.TYPE_INT32
    (lengths,) = config.batch_input
    assert (list(lengths.target_name), list(lengths.source_input)) == ([LENGTHS], [IDS])
    assert lengths.kind == model_config_pb2.BatchInput.BATCH_ITEM_SHAPE_FLATTEN
    (output,) = config.output
    assert (output.name, list(output.dims)) == ("sentence_embedding", [64])
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    assert served.names == [IDS, LENGTHS]
    assert (served.folder / "tokenizer.json").is_file()


def test_a_model_that_is_there_is_not_written_over(served: Served) -> None:
    entry = choose_engine(served.bundle, precisions=(), engine=None)
    with pytest.raises(UsageError, match="is there already: choose another --name or --out"):
        write_onnxruntime_model(served.bundle, entry, served.folder.parent, name="mexma")


def test_a_repository_that_cannot_be_written_is_told_and_leaves_nothing(
    tiny_bundle: Path, tmp_path: Path, small_files: int
) -> None:
    bundle = Bundle.open(tiny_bundle)
    entry = choose_engine(bundle, precisions=(), engine=None)
    with pytest.raises(FileError, match="mexma: cannot be written: File too large"):
        write_onnxruntime_model(bundle, entry, tmp_path / "new", name="mexma")
    with pytest.raises(FileError, match="mexma: cannot be written: File too large"):
        write_onnxruntime_model(bundle, entry, tmp_path, name="mexma")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileError, match="cannot be written: File name too long: choose a shorter name"):
        write_onnxruntime_model(bundle, entry, tmp_path, name="m" * 300)


def test_fp16_is_chosen_before_others_and_packed_never(tiny_bundle: Path, packed_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert choose_engine(bundle, precisions=(), engine=None).name == "fused.fp16"
    assert choose_engine(bundle, precisions=[Precision.FP32], engine=None).name == "fused.fp32"
    assert choose_engine(bundle, precisions=(), engine="portable.fp32").name == "portable.fp32"
    with pytest.raises(EngineUnavailableError, match=r"no engine packed\.fp32 .* those it has: fused\.fp32"):
        choose_engine(Bundle.open(packed_bundle), precisions=(), engine="packed.fp32")


def test_over_tensorrt_the_plan_is_served_by_the_profile_of_the_longest(
    plan: Plan, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / plan.file).write_bytes(b"plan")
    bundle, path = Bundle.open(tiny_bundle), tmp_path / plan.file
    folder = write_tensorrt_model(bundle, plan, path, tmp_path / "repository", name="over-tensorrt")
    config = config_of(folder)
    assert (config.backend, config.max_batch_size) == ("tensorrt", 8)
    assert [(value.name, list(value.dims), value.allow_ragged_batch) for value in config.input] == [
        (name, [-1], False) for name in ("input_ids", "attention_mask", "position_ids")
    ]
    (group,) = config.instance_group
    assert (list(group.profile), group.kind) == (["1"], model_config_pb2.ModelInstanceGroup.KIND_GPU)
    assert (folder / "1" / "model.plan").read_bytes() == b"plan"
