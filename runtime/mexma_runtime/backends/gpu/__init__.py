"""Engines on NVIDIA GPUs: memory, layouts, CUDA graphs and the libraries that run a graph there."""
