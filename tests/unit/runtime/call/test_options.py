from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mexma_runtime import Encoder
from mexma_runtime.call.options import listed, require_texts
from mexma_runtime.errors import InputError

NO_TEXTS = [
    (None, "expected a str, got NoneType"),
    (b"bytes", "expected a str, got bytes"),
    (("a", "b"), "expected a str, got tuple"),
    (3, "expected a str, got int"),
]


@pytest.mark.parametrize(("text", "said"), NO_TEXTS)
@pytest.mark.parametrize("others", [0, 3])
def test_what_is_no_text_is_named_by_its_index(text: Any, said: str, others: int) -> None:
    with pytest.raises(InputError, match=rf"input {others + 7}: {said}") as caught:
        require_texts(["a"] * others + [text, text], 7)
    assert caught.value.index == others + 7
    with pytest.raises(InputError, match=rf"input {others}: {said}"):
        listed(iter(["a"] * others + [text]))


@pytest.mark.parametrize(("text", "said"), NO_TEXTS)
def test_every_way_to_encode_refuses_it(bundle_folder: Path, text: Any, said: str) -> None:
    """Before the engine runs for those in front of it; of an iterator, when its window is read."""
    texts = ["a", "b", text, "c"]
    with Encoder.load(bundle_folder, n_threads=1) as encoder:
        compute_s = encoder.times.compute_s
        for ask in (encoder.encode, encoder.tokenize):
            with pytest.raises(InputError, match=f"input 2: {said}"):
                ask(texts)
        assert encoder.times.compute_s == compute_s
        with pytest.raises(InputError, match=f"input 2: {said}"):
            list(encoder.encode_iter(texts, window=2, prompt="query: "))
