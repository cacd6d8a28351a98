"""Attention on onnxruntime's CPU for batches without padding: no mask, so that scores are computed in blocks.

Its MultiHeadAttention has a kernel for that on CPUs, and takes it where nothing but biases comes with queries, keys
and values. With a mask, of any form, all heads x length x length scores are kept, as by a portable graph's products.
Field numbers: onnx.proto.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mexma_runtime.bundle.protobuf import bytes_field, fields, integer_field, texts
from mexma_runtime.errors import InputError
from mexma_runtime.hardware import detect_hardware, l2_cache_bytes

ATTENTION, DOMAIN = "MultiHeadAttention", "com.microsoft"
N_UNMASKED = 4
"""The operator's inputs before its mask: queries, keys, values, biases."""
SWITCH = "ORT_DISABLE_FLASH_ATTENTION"
"""onnxruntime's environment variable that takes the kernel away."""
BYTES_A_SCORE = 4

MODEL_GRAPH, MODEL_OPERATORS = 7, 8
GRAPH_NODE, GRAPH_OUTPUT = 1, 12
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OPERATOR, NODE_ATTRIBUTE, NODE_DOMAIN = 1, 2, 3, 4, 5, 7
ATTRIBUTE_NAME, ATTRIBUTE_INTEGER, ATTRIBUTE_TYPE, INTEGER = 1, 3, 20, 2
VALUE_NAME, OPERATORS_DOMAIN, OPERATORS_VERSION = 1, 1, 2


@dataclass(frozen=True, kw_only=True)
class _Node:
    message: bytes
    """A NodeProto."""
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def unmasked(model: bytes, n_heads: int) -> bytes:
    """`model`, a fused or portable graph of the export, with MultiHeadAttention without a mask for its attention.

    What only the mask was made of is gone; the inputs stay. A graph without attention comes back as it is. Raises
    IndexError or ValueError where `model` is none.
    """
    parts = list(fields(model))
    (graph,) = (list(fields(value)) for number, value, _ in parts if number == MODEL_GRAPH)
    nodes = [_node(value) for number, value, _ in graph if number == GRAPH_NODE]
    changed = [_without_mask(node, n_heads) for node in nodes]
    if changed == nodes:
        return model
    outputs = [name for number, value, _ in graph if number == GRAPH_OUTPUT for name in texts(value, VALUE_NAME)]
    written = [bytes_field(GRAPH_NODE, node.message) for node in _needed(changed, outputs)]
    written += [raw for number, _, raw in graph if number != GRAPH_NODE]
    operators = bytes_field(OPERATORS_DOMAIN, DOMAIN.encode()) + integer_field(OPERATORS_VERSION, 1)
    added = [bytes_field(MODEL_OPERATORS, operators), bytes_field(MODEL_GRAPH, b"".join(written))]
    return b"".join([raw for number, _, raw in parts if number != MODEL_GRAPH and raw not in added] + added)


def reason_for_all_scores() -> str | None:
    """Why onnxruntime keeps all scores of a sentence in this process; None: it computes them in blocks."""
    if l2_cache_bytes() == 0:
        return "the C library does not know the size of the L2 cache (getconf LEVEL2_CACHE_SIZE)"
    return None if os.environ.get(SWITCH, "0") in ("", "0") else f"{SWITCH} is set"


def require_memory(length: int, n_heads: int, reason: str) -> None:
    """InputError where all scores of a sentence of `length` tokens, kept for `reason`, do not fit into memory."""
    needed, free = n_heads * length**2 * BYTES_A_SCORE, detect_hardware().memory_available_bytes
    if free is not None and needed > free:
        raise InputError(
            f"a text of {length} tokens takes {needed / 1e9:.1f} GB for the scores of its attention, and "
            f"{free / 1e9:.1f} GB are free: onnxruntime keeps all of them, as {reason}; pass backend='openvino', or "
            f"shorten the text"
        )


def _without_mask(node: _Node, n_heads: int) -> _Node:
    """The fused operator without its mask, or in place of the last of the portable ones; any other `node` as it is."""
    path, _, name = node.outputs[0].rpartition(".")
    if node.operator == ATTENTION:
        inputs = node.inputs[:N_UNMASKED]
    elif name == "out" and node.inputs[0] == f"{path}.context.rows":
        inputs = tuple(f"{path}.{part}.out" for part in ("query", "key", "value"))
    else:
        return node
    strings = [(NODE_INPUT, name) for name in inputs] + [(NODE_OUTPUT, name) for name in node.outputs]
    strings += [(NODE_NAME, node.outputs[0]), (NODE_OPERATOR, ATTENTION), (NODE_DOMAIN, DOMAIN)]
    attribute = bytes_field(ATTRIBUTE_NAME, b"num_heads") + integer_field(ATTRIBUTE_INTEGER, n_heads)
    message = [bytes_field(number, text.encode()) for number, text in strings]
    message.append(bytes_field(NODE_ATTRIBUTE, attribute + integer_field(ATTRIBUTE_TYPE, INTEGER)))
    return replace(node, message=b"".join(message), operator=ATTENTION, inputs=inputs)


def _needed(nodes: list[_Node], outputs: Iterable[str]) -> list[_Node]:
    """Those of `nodes` that `outputs` are made by, in their order."""
    wanted, needed = set(outputs), []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.outputs):
            wanted.update(node.inputs)
            needed.append(node)
    return needed[::-1]


def _node(message: bytes) -> _Node:
    (operator,) = texts(message, NODE_OPERATOR)
    return _Node(
        message=message,
        operator=operator,
        inputs=texts(message, NODE_INPUT),
        outputs=texts(message, NODE_OUTPUT),
    )
