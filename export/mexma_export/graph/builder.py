"""The one object that graphs are written with: values, nodes and initializers under stable path names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mexma_runtime.types import Precision

OPSET = 20
"""The first opset with Gelu; LayerNormalization came with 17."""
IR_VERSION = 10
FUSED_DOMAIN = "com.microsoft"

Dimension = int | str


class GraphBuilder:
    """Collects nodes in order. A value's name is its path in the model: `layer.3.attention.out`."""

    def __init__(self, weights: Mapping[str, ir.TensorProtocol], *, floats: Precision) -> None:
        """`floats`: fp32 or fp16, what the graph computes in where nothing is quantized."""
        self._weights = weights
        self._nodes: list[ir.Node] = []
        self._inputs: list[ir.Value] = []
        self._initializers: dict[str, ir.Value] = {}
        self.float_type = ir.DataType.FLOAT16 if floats is Precision.FP16 else ir.DataType.FLOAT

    def input(self, name: str, shape: Sequence[Dimension], dtype: ir.DataType = ir.DataType.INT32) -> ir.Value:
        """An input of the graph."""
        value = ir.val(name, dtype, list(shape))
        self._inputs.append(value)
        return value

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        *,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Append a node with one output, both called `name`."""
        output = ir.val(name)
        self._nodes.append(ir.node(op_type, inputs, attributes, domain=domain, outputs=[output], name=name))
        return output

    def value(self, name: str) -> ir.Value:
        """What the node `name` gives."""
        return next(node.outputs[0] for node in self._nodes if node.name == name)

    def weight(self, name: str) -> ir.Value:
        """An initializer that holds the tensor `name` of the model."""
        return self._initializer(name, self._weights[name])

    def array(self, name: str) -> NDArray[Any]:
        """The numbers of the tensor `name` of the model."""
        return self._weights[name].numpy()

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """An initializer that holds `array`; equal names must hold equal arrays."""
        return self._initializer(name, ir.tensor(array, name=name))

    def number(self, value: float) -> ir.Value:
        """A scalar in the graph's number format."""
        return self.constant(f"number.{value:g}", np.asarray(value, dtype=self.float_type.numpy()))

    def _initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        if name not in self._initializers:
            self._initializers[name] = ir.val(name, const_value=tensor)
        return self._initializers[name]

    def finish(self, outputs: Mapping[ir.Value, Sequence[Dimension]], *, name: str) -> ir.Model:
        """The model with `outputs` and their shapes, all of them float32."""
        for output, shape in outputs.items():
            output.type = ir.TensorType(ir.DataType.FLOAT)
            output.shape = ir.Shape(list(shape))
        opsets = {"": OPSET} | {node.domain: 1 for node in self._nodes if node.domain}
        graph = ir.Graph(
            self._inputs,
            list(outputs),
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports=opsets,
            name=name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="mexma-runtime")
