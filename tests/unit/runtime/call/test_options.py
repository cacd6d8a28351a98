from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mexma_runtime import Encoder
from mexma_runtime.call.execution import WINDOW_TEXTS
from mexma_runtime.call.options import listed, require_texts
from mexma_runtime.errors import InputError, TextTooLongError, UsageError

NO_TEXTS = [
    (None, "expected a str, got NoneType"),
    (b"bytes", "expected a str, got bytes"),
    (("a", "b"), "expected a str, got tuple"),
    (3, "expected a str, got int"),
    ("half \ud83d", r"character 5 is '\\ud83d', half of a surrogate pair"),
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


@pytest.mark.parametrize(
    ("text", "options", "error", "said"),
    [
        ("half \ud83d", {}, InputError, "half of a surrogate pair"),
        ("a " * 20, {"truncate": False}, TextTooLongError, "more than 16 tokens"),
        ("b" * 300, {}, InputError, "300 characters without a place to cut them"),
    ],
)
def test_nothing_is_computed_before_the_last_of_many_texts_was_looked_at(
    bundle_folder: Path, text: str, options: dict[str, Any], error: type[InputError], said: str
) -> None:
    texts = ["a"] * 2 * WINDOW_TEXTS + [text]
    with Encoder.load(bundle_folder, n_threads=1, max_whole_chars=200) as encoder:
        compute_s = encoder.times.compute_s
        with pytest.raises(error, match=f"input {len(texts) - 1}: .*{said}"):
            encoder.encode(texts, **options)
        assert encoder.times.compute_s == compute_s
        assert encoder.encode(texts[:-1], **options).shape == (len(texts) - 1, encoder.info.dim)


def test_a_prompt_is_a_text(bundle_folder: Path) -> None:
    with Encoder.load(bundle_folder, n_threads=1) as encoder:
        for options in ({"prompt": 3}, {"prompt_name": ["query"]}):
            with pytest.raises(UsageError, match="expected a str, got"):
                encoder.encode(["a"], **options)
        with pytest.raises(UsageError, match="prompt: expected valid Unicode, got"):
            encoder.encode(["a"], prompt="\ud800")


def test_a_prompt_wins_over_a_name_that_has_to_be_known(bundle_folder: Path) -> None:
    with Encoder.load(bundle_folder, n_threads=1) as encoder:
        expected = encoder.encode(["the cat"])
        np.testing.assert_array_equal(encoder.encode(["cat"], prompt_name="query", prompt="the "), expected)
        for prompt in (None, "the "):
            with pytest.raises(UsageError, match=r"prompt_name: expected one of \[.*'query'.*\], got 'nonsense'"):
                encoder.encode(["cat"], prompt_name="nonsense", prompt=prompt)


def test_an_array_without_an_axis_is_no_sequence(bundle_folder: Path) -> None:
    one: Any = np.array("abc")
    with Encoder.load(bundle_folder, n_threads=1) as encoder:
        for ask in (encoder.encode, encoder.encode_query, encoder.tokenize, encoder.encode_iter):
            with pytest.raises(InputError, match=r"expected an? (sequence|iterable) of str, got ndarray of shape \(\)"):
                ask(one)
        np.testing.assert_array_equal(encoder.encode(one.reshape(1)), encoder.encode(["abc"]))
