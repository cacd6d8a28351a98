"""A graph of one node around a plan, for those who serve it by onnxruntime's own TensorRT provider.

The node and its attributes are onnxruntime's EPContext. The provider stays on a plan's first profile
(microsoft/onnxruntime#31624), so there is one for plans of one profile alone.
"""

from __future__ import annotations

import onnx_ir as ir

from mexma_export.graph.builder import FUSED_DOMAIN, IR_VERSION, OPSET
from mexma_runtime.bundle.plans import Plan, Platform

IS_BESIDE = 0
"""embed_mode: `ep_cache_context` is the plan's file name, relative to the graph, and not its content."""


def ep_context_model(plan: Plan) -> ir.Model:
    """The graph: the plan's inputs in, its output out. It lies in the plan's folder."""
    assert isinstance(plan.target, Platform)
    inputs = [ir.val(tensor.name, ir.DataType.INT32, tensor.shape) for tensor in plan.inputs]
    output = ir.val(plan.output.name, ir.DataType.FLOAT, plan.output.shape)
    attributes: dict[str, int | str] = {
        "main_context": 1,
        "embed_mode": IS_BESIDE,
        "ep_cache_context": plan.file,
        "hardware_architecture": plan.target.capability.replace(".", ""),
        "onnx_model_filename": plan.graph,
        "source": "TensorrtExecutionProvider",
    }
    node = ir.node("EPContext", inputs, attributes, domain=FUSED_DOMAIN, outputs=[output], name=plan.engine)
    graph = ir.Graph(inputs, [output], nodes=[node], opset_imports={"": OPSET, FUSED_DOMAIN: 1}, name=plan.engine)
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="mexma-runtime")
