"""Checkpoints: where they come from, what their files say, their tensors; and stand-ins."""
