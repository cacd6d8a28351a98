"""The vocabulary of a checkpoint's tokenizer, against its embeddings."""

from __future__ import annotations

from pathlib import Path

from mexma_runtime.errors import CheckpointError


def check_vocabulary(tokenizer: Path, vocab_size: int) -> None:
    """CheckpointError where the tokenizer.json at `tokenizer` cannot be read, or gives ids that have no embedding."""
    from tokenizers import Tokenizer

    try:
        read = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise CheckpointError(tokenizer, [f"the tokenizers library cannot read it: {error}"]) from None
    largest = max(read.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= vocab_size:
        raise CheckpointError(tokenizer, [f"gives ids up to {largest}, but config.json has {vocab_size} embeddings"])
