"""`make gpu-check`: tests, parity, memory and speed on a GPU, each held against a bar, in eight minutes.

steps.py runs one step after another and keeps what it finds. What is timed are subjects of the suite (lineup.py), and
bars.py holds their samples against bars; kernels, memory and the GPU tests are steps of their own.
"""
