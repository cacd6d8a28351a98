"""The shapes that graphs are captured for. Pure."""

from __future__ import annotations

import dataclasses

from mexma_runtime.backends.gpu.layouts import Shape

STEPS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
"""Tokens: never more than half as much again as the batch has, but for the smallest."""
SENTENCES = (1, 2, 4, 8, 16, 32, 64)
TOKENS_A_SENTENCE = 4
"""Of packed buckets: one with room for n tokens takes at most n / 4 sentences; texts are seldom shorter."""


def packed_buckets(max_tokens: int, *, up_to_tokens: int) -> list[Shape]:
    """Buckets for tokens end to end, the smallest first: a sentence of `max_tokens` fits into the larger ones."""
    return [
        Shape(n_sentences=-(-n_tokens // TOKENS_A_SENTENCE), longest=min(n_tokens, max_tokens), n_tokens=n_tokens)
        for n_tokens in STEPS
        if n_tokens <= up_to_tokens
    ]


def long_buckets(max_tokens: int, *, up_to_tokens: int, above_mean_tokens: int) -> list[Shape]:
    """Packed buckets for sentences that have more than `above_mean_tokens` tokens each, on average.

    None where all of `packed_buckets` are for such, full.
    """
    if above_mean_tokens < TOKENS_A_SENTENCE:
        return []
    many = packed_buckets(max_tokens, up_to_tokens=up_to_tokens)
    few = [
        dataclasses.replace(
            shape, n_sentences=(shape.n_tokens - 1) // above_mean_tokens, above_mean_tokens=above_mean_tokens
        )
        for shape in many
    ]
    return [shape for shape in few if shape.n_sentences > 0]


def padded_buckets(max_tokens: int, *, up_to_tokens: int) -> list[Shape]:
    """Buckets for `n_sentences` of up to `longest` tokens each, the smallest first."""
    lengths = [step for step in STEPS if step < max_tokens] + [max_tokens]
    shapes = [
        Shape(n_sentences=n, longest=longest, n_tokens=n * longest)
        for longest in lengths
        for n in SENTENCES
        if n * longest <= up_to_tokens
    ]
    return sorted(shapes, key=size)


def size(shape: Shape) -> tuple[int, int, int]:
    """What buckets are ordered by: a batch runs in the first that holds it."""
    return shape.n_tokens, shape.n_sentences, shape.longest
