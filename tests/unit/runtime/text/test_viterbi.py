from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from mexma_runtime.text.viterbi import Viterbi

SCORES = st.one_of(
    st.floats(min_value=-20, max_value=-0.01),
    st.integers(min_value=-20, max_value=-1).map(float),
    st.sampled_from([-0.1, -0.2, -0.3, -1.1, -2.2, -3.3]),
)
PIECES = st.dictionaries(st.text("abc", min_size=1, max_size=5), SCORES, min_size=1, max_size=12)


def unigram(pieces: dict[str, float]) -> Tokenizer:
    return Tokenizer(models.Unigram([("<unk>", 0.0), *pieces.items()], unk_id=0))


def path(viterbi: Viterbi, word: str) -> list[int | None]:
    return viterbi.ids(word, viterbi.best_scores(word)[1])


@given(pieces=PIECES, word=st.text("abcd", min_size=1, max_size=60))
def test_the_same_path_as_tokenizers(pieces: dict[str, float], word: str) -> None:
    tokenizer = unigram(pieces)
    assert path(Viterbi(tokenizer), word) == tokenizer.encode(word).ids


@settings(max_examples=300)
@given(
    pieces=PIECES,
    before=st.text("abcd", max_size=5),
    unit=st.text("abc", min_size=1, max_size=4),
    n_more=st.integers(min_value=0, max_value=6000),
)
def test_runs_end_where_walking_them_ends(pieces: dict[str, float], before: str, unit: str, n_more: int) -> None:
    tokenizer = unigram(pieces)
    viterbi = Viterbi(tokenizer)
    longest = max(map(len, ["<unk>", *pieces]))
    head = before + unit * 20
    best, _ = viterbi.best_scores(head)
    origin = viterbi.origin(unit, best[-longest:], range(len(head) - longest + 1, len(head) + 1), n_more)

    word = head + (unit * (n_more // len(unit) + 1))[:n_more]
    _, starts = viterbi.best_scores(word)
    boundary = len(word)
    while boundary > len(head):
        boundary = starts[boundary]
    assert origin == boundary


def test_scores_that_are_half_a_unit_are_walked() -> None:
    """-2 ** -40 is half a unit in the last place of sums from 2 ** 13 on, where rounding depends on the sum."""
    pieces = {"a": -(2.0**-2) - 2.0**-40, "aa": -(2.0**-1) - 2.0**-40, "aaa": -1.0}
    tokenizer = unigram(pieces)
    viterbi = Viterbi(tokenizer)
    best, _ = viterbi.best_scores("a" * 50)
    for n_more in (99_950, 99_951, 99_952):
        origin = viterbi.origin("a", best[-5:], range(5), n_more)
        head = path(viterbi, "a" * (46 + (origin or 0)))
        assert tokenizer.encode("a" * (50 + n_more)).ids[: len(head)] == head
