"""`make gpu-check`: tests, parity, memory and speed on a GPU, each held against a bar, in eight minutes.

Steps write rows (checks.py) and raw samples; run.py runs them one after another and keeps what they found.
"""
