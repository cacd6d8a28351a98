"""A model repository for Triton Inference Server from a bundle: token ids in, vectors out.

Over onnxruntime requests of different lengths are batched without padding by the client: Triton lays their ids end to
end (ragged batching) and tells each one's length, and the graph pads. TensorRT's plan takes padded ids, so that Triton
batches requests of one shape alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from mexma_export.graph.layouts import PADDED_INPUTS
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry, PositionScheme, TextEntry
from mexma_runtime.bundle.plans import Plan
from mexma_runtime.errors import EngineUnavailableError, UsageError, file_errors
from mexma_runtime.types import Dialect, Precision

IDS, LENGTHS = "input_ids", "lengths"
"""Of the ragged graph: int32 `(tokens,)`, all requests' ids end to end; int32 `(sentences,)`, tokens of each."""
MAX_BATCH_SIZE = 64
QUEUE_DELAY_US = 500
"""How long a request may wait for others to be batched with."""
VERSION = "1"


def choose_engine(bundle: Bundle, *, precisions: Sequence[Precision], engine: str | None) -> EngineEntry:
    """The engine for Triton's onnxruntime backend: of `precisions`, or fp16 before others; fused; or the one named."""
    there = [e for e in bundle.manifest.engines if e.dialect is not Dialect.PACKED and "onnxruntime" in e.requires]
    fitting = [e for e in there if (not precisions or e.precision in precisions) and engine in (None, e.name)]
    fitting.sort(key=lambda e: (e.precision is not Precision.FP16, e.dialect is not Dialect.FUSED, e.name))
    if not fitting:
        listed = ", ".join(e.name for e in there) or "none"
        raise EngineUnavailableError(
            f"{bundle.folder}: no engine {engine or ' or '.join(precisions)} for Triton's onnxruntime backend; those "
            f"it has: {listed}"
        )
    return fitting[0]


def write_onnxruntime_model(bundle: Bundle, entry: EngineEntry, repository: Path, *, name: str) -> Path:
    """Write the model `name` over the graph of `entry` into the folder `repository`; its folder is returned."""
    manifest = bundle.manifest
    kind = {Precision.FP16: "KIND_GPU", Precision.INT8: "KIND_CPU"}.get(entry.precision, "KIND_AUTO")
    lengths = (
        f"batch_input [\n  {{\n    kind: BATCH_ITEM_SHAPE_FLATTEN\n    target_name: {_text(LENGTHS)}\n"
        f"    data_type: TYPE_INT32\n    source_input: {_text(IDS)}\n  }}\n]\n"
    )
    text = _config(name, "onnxruntime", MAX_BATCH_SIZE, [IDS], entry.output, manifest.dim, kind, is_ragged=True)
    model = ragged_model(bundle.path(entry.file), manifest.text, normalize=manifest.is_normalized)
    with _new_folder(repository, name) as folder:
        ir.save(model, folder / VERSION / "model.onnx", format="protobuf")
        for file in entry.weights:
            shutil.copyfile(bundle.path(file), folder / VERSION / file)
        return _finish(folder, text + lengths, bundle)


def write_tensorrt_model(bundle: Bundle, plan: Plan, path: Path, repository: Path, *, name: str) -> Path:
    """The same over a plan of this machine's GPU, whose inputs are padded: all rows of a request to one length."""
    inputs = [tensor.name for tensor in plan.inputs]
    # Any length may come, so no more than the profile of the longest sentences holds; one profile, as Triton's
    # TensorRT backend chooses one for each instance.
    number, profile = max(enumerate(plan.profiles), key=lambda item: (item[1].longest.most, item[1].n_sentences.most))
    most = profile.n_sentences.most
    text = _config(name, "tensorrt", most, inputs, plan.output.name, bundle.manifest.dim, "KIND_GPU", profile=number)
    with _new_folder(repository, name) as folder:
        shutil.copyfile(path, folder / VERSION / "model.plan")
        return _finish(folder, text, bundle)


def ragged_model(path: Path, text: TextEntry, *, normalize: bool) -> ir.Model:
    """The graph in `path` behind one that pads: IDS and LENGTHS in, what it gave out, of length 1 if `normalize`."""
    model = ir.load(path)
    graph = model.graph
    ids, lengths = (ir.val(name, ir.DataType.INT32, [dim]) for name, dim in ((IDS, "all_tokens"), (LENGTHS, "batch")))
    nodes: list[ir.Node] = []

    def op(kind: str, inputs: Sequence[ir.Value | None], name: str, **attributes: Any) -> ir.Value:
        output = ir.val(f"ragged.{name}")
        nodes.append(ir.node(kind, inputs, attributes, outputs=[output], name=f"ragged.{name}"))
        return output

    def constant(value: Any, name: str, dtype: Any = np.int32) -> ir.Value:
        made = ir.val(f"ragged.{name}", const_value=ir.tensor(np.array(value, dtype), name=f"ragged.{name}"))
        graph.register_initializer(made)
        return made

    zero, one, padding = constant(0, "zero"), constant(1, "one"), constant(text.padding_id, "padding_id")
    first_axis, second_axis = constant([0], "first_axis", np.int64), constant([1], "second_axis", np.int64)
    longest = op("ReduceMax", [lengths, first_axis], "longest", keepdims=0)
    columns = op("Unsqueeze", [op("Range", [zero, longest, one], "range"), first_axis], "columns")
    is_token = op("Less", [columns, op("Unsqueeze", [lengths, second_axis], "ends")], "is_token")
    starts = op("CumSum", [lengths, constant(0, "axis", np.int64)], "starts", exclusive=1)
    places = op("Add", [columns, op("Unsqueeze", [starts, second_axis], "starts.column")], "places")
    tokens = op("Gather", [ids, op("Where", [is_token, places, zero], "places.within")], "tokens", axis=0)
    padded = op("Where", [is_token, tokens, padding], "padded")
    mask = op("Cast", [is_token], "mask", to=ir.DataType.INT32)
    if text.position_scheme is PositionScheme.FROM_ZERO:
        positions = op("Mul", [columns, mask], "positions")
    else:
        is_counted = op("Not", [op("Equal", [padded, padding], "is_padding")], "is_counted")
        counts = op("Cast", [is_counted], "counts", to=ir.DataType.INT32)
        summed = op("CumSum", [counts, constant(1, "second", np.int64)], "summed")
        positions = op("Add", [op("Mul", [summed, counts], "counted"), padding], "positions")

    made = dict(zip(PADDED_INPUTS, (padded, mask, positions), strict=True))
    for value in list(graph.inputs):
        ir.convenience.replace_all_uses_with(value, made[str(value.name)])
    graph.inputs.clear()
    graph.inputs.extend([ids, lengths])
    graph.insert_before(next(iter(graph)), nodes)
    if normalize:
        nodes.clear()
        pooled = graph.outputs[0]
        name, pooled.name = pooled.name, "ragged.pooled"
        length = op("ReduceL2", [pooled, constant([-1], "last_axis", np.int64)], "length", keepdims=1)
        unit = op("Div", [pooled, op("Max", [length, constant(1e-12, "least", np.float32)], "divisor")], "unit")
        unit.name, unit.type, unit.shape = name, pooled.type, pooled.shape
        graph.outputs[0] = unit
        graph.extend(nodes)
    return model


def _config(
    name: str,
    backend: str,
    max_batch_size: int,
    inputs: Sequence[str],
    output: str,
    dim: int,
    kind: str,
    *,
    is_ragged: bool = False,
    profile: int | None = None,
) -> str:
    """config.pbtxt: Triton's ModelConfig (model_config.proto) as text."""
    listed = ",\n".join(
        f"  {{\n    name: {_text(value)}\n    data_type: TYPE_INT32\n    dims: [-1]\n"
        + ("    allow_ragged_batch: true\n" if is_ragged else "")
        + "  }"
        for value in inputs
    )
    chosen = "" if profile is None else f"\n    profile: {_text(str(profile))}"
    return (
        f"name: {_text(name)}\nbackend: {_text(backend)}\nmax_batch_size: {max_batch_size}\n"
        f"input [\n{listed}\n]\n"
        f"output [\n  {{\n    name: {_text(output)}\n    data_type: TYPE_FP32\n    dims: [{dim}]\n  }}\n]\n"
        f"instance_group [\n  {{\n    count: 1\n    kind: {kind}{chosen}\n  }}\n]\n"
        f"dynamic_batching {{\n  max_queue_delay_microseconds: {QUEUE_DELAY_US}\n}}\n"
    )


def _text(value: str) -> str:
    return json.dumps(value)


@contextmanager
def _new_folder(repository: Path, name: str) -> Iterator[Path]:
    """A folder that is removed where the block raises; FileError where it cannot be written."""
    folder, is_new = repository / name, not repository.exists()
    with file_errors(folder, "cannot be written"):
        if folder.exists():
            raise UsageError(f"{folder} is there already: choose another --name or --out, or remove it")
        (folder / VERSION).mkdir(parents=True)
        try:
            yield folder
        except BaseException:
            shutil.rmtree(repository if is_new else folder, ignore_errors=True)
            raise


def _finish(folder: Path, config: str, bundle: Bundle) -> Path:
    """The tokenizer, which clients need, and last the configuration, without which Triton takes no model."""
    shutil.copyfile(bundle.path(bundle.manifest.text.tokenizer), folder / "tokenizer.json")
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    return folder
