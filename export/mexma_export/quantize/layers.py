"""The fp32 model run layer by layer over calibration text, with taps on what its products read.

One layer's weights are in memory at a time, beside the hidden states of all tokens: 80 MB for 20,000 tokens of 1024.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mexma_export.checkpoint.checkpoint import Checkpoint
from mexma_export.checkpoint.tensors import rows_of, whole
from mexma_export.graph.encoder import LAYER_INPUTS, layer_taps, write_layer
from mexma_export.graph.linear import FLOAT_PRODUCTS, Products
from mexma_export.graph.weights import position_table
from mexma_export.quantize.calibration import Calibration
from mexma_runtime.errors import MissingDependencyError
from mexma_runtime.types import Dialect, Pooling

Floats = NDArray[np.float32]
Layer = Callable[[Floats], Mapping[str, Floats]]
"""Hidden states `(n, length, hidden)` of sentences of one length -> the values at `layer_taps`."""


def embed_tokens(checkpoint: Checkpoint, calibration: Calibration) -> Iterator[tuple[NDArray[np.int64], Floats]]:
    """For each batch of calibration text its rows and the first layer's input, float32 `(n, length, hidden)`."""
    config, tensors = checkpoint.config, checkpoint.tensors
    positions = position_table(checkpoint)
    gamma, beta = (whole(tensors[f"embeddings.norm.{part}"]) for part in ("gamma", "beta"))
    for rows in calibration.batches():
        ids = calibration.ragged.take(rows).ids.reshape(rows.size, -1)
        first = config.first_position
        x = rows_of(tensors["embeddings.word"], ids) + positions[first : first + ids.shape[1]]
        centred = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + np.float32(config.layer_norm_epsilon))
        yield rows, centred / deviation * gamma + beta


def layer_tensors(checkpoint: Checkpoint, layer: int) -> dict[str, Floats]:
    """The weights of one layer by our names, linear weights as (in, out), and the attention's bias in one."""
    prefix = f"layer.{layer}."
    tensors = {n: whole(info) for n, info in checkpoint.tensors.items() if n.startswith(prefix)}
    tensors = {n: np.ascontiguousarray(a.T) if a.ndim == 2 else a for n, a in tensors.items()}
    path = f"{prefix}attention"
    tensors[f"{path}.bias"] = np.concatenate([tensors[f"{path}.{part}.bias"] for part in ("query", "key", "value")])
    return tensors


def open_layer(
    checkpoint: Checkpoint,
    layer: int,
    tensors: Mapping[str, Any],
    *,
    products: Products = FLOAT_PRODUCTS,
    n_threads: int,
) -> Layer:
    """A session over one layer, with onnxruntime's own operators."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("onnxruntime", needed_for="calibrating int8", extra="cpu") from error

    weights = {name: ir.tensor(array, name=name) for name, array in tensors.items()}
    pooling: Pooling = checkpoint.settings.pooling_mode
    model = write_layer(checkpoint.config, weights, layer, dialect=Dialect.FUSED, pooling=pooling, products=products)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")  # else sums saturate on processors without VNNI
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = layer_taps(layer)

    def run(hidden: Floats) -> Mapping[str, Floats]:
        mask = np.ones(hidden.shape[:2], dtype=np.int32)
        return dict(
            zip(names, session.run(list(names), dict(zip(LAYER_INPUTS, (hidden, mask), strict=True))), strict=True)
        )

    return run
