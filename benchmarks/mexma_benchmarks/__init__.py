"""Measure bundles and their runtime against PyTorch."""
