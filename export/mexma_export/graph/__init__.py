"""The encoder as an ONNX graph, written from its weights."""
