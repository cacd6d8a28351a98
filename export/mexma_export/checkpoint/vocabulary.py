"""The vocabulary of a checkpoint's tokenizer, against its embeddings."""

from __future__ import annotations

from pathlib import Path

from mexma_runtime.errors import CheckpointError


def check_vocabulary(tokenizer: bytes, vocab_size: int, *, where: Path) -> None:
    """CheckpointError, of the file `where`, if a tokenizer.json gives ids that have no embedding."""
    from tokenizers import Tokenizer

    read = Tokenizer.from_str(tokenizer.decode("utf-8"))
    around = read.encode("").ids
    largest = max([*read.get_vocab(with_added_tokens=True).values(), *around], default=0)
    if largest >= vocab_size:
        raise CheckpointError(where, [f"gives ids up to {largest}, but config.json has {vocab_size} embeddings"])
