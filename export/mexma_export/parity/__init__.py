"""How far an engine is from the model in PyTorch, and whether that is good enough."""
