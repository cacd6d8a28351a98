from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma_export.parity.sts import StsFigures, StsPairs, measure_sts, read_sts, spearman
from mexma_runtime.errors import ParityError, UsageError
from mexma_runtime.types import Vectors


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3, 4, 5], [5, 6, 7, 8, 7], 0.8207826816681233),  # one tie; the example of SciPy's spearmanr
        ([1, 2, 3], [10, 100, 1000], 1),
        ([1, 2, 3], [3, 2, 1], -1),
        ([106, 100, 86, 101, 99, 103, 97, 113, 112, 110], [7, 27, 2, 50, 28, 29, 20, 12, 6, 17], -29 / 165),
        ([1, 1, 2, 2], [1, 2, 1, 2], 0),
    ],
)
def test_known_samples(a: list[float], b: list[float], expected: float) -> None:
    assert spearman(a, b) == pytest.approx(expected, abs=1e-12)


@given(pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30))
def test_it_is_pearson_of_mean_ranks(pairs: list[tuple[int, int]]) -> None:
    def ranks(values: list[int]) -> list[float]:
        return [sum(v < own for v in values) + (sum(v == own for v in values) + 1) / 2 for own in values]

    a, b = (list(side) for side in zip(*pairs, strict=True))
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert spearman(a, b) is None
    else:
        assert spearman(a, b) == pytest.approx(np.corrcoef(ranks(a), ranks(b))[0, 1], abs=1e-12)
        assert spearman(np.exp(a), b) == pytest.approx(spearman(a, b), abs=1e-12)


def read(tmp_path: Path, content: str) -> StsPairs:
    path = tmp_path / "sts.tsv"
    path.write_bytes(content.encode())
    return read_sts(path)


def test_pairs_of_a_file(tmp_path: Path) -> None:
    pairs = read(tmp_path, "4.5\ta b\tc\r\n\n-1e0\td\te\n")
    assert (pairs.name, pairs.scores) == ("sts.tsv", (4.5, -1.0))
    assert (pairs.first, pairs.second) == (("a b", "d"), ("c", "e"))
    assert read(tmp_path, "4.5\ta\rb\tc\n1\td\te\n").first == ("a\rb", "d")
    headed = read(tmp_path, "score\tsentence1\tsentence2\n4.5\ta b\tc\n-1.0\td\te\n")
    assert headed.sha256 == pairs.sha256
    assert headed.scores == pairs.scores


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\ta\n2\tb\tc\n", "line 1: expected score TAB sentence TAB sentence, got '1\\\\ta'"),
        ("1\ta\tb\nscore\tb\tc\n", "line 2: "),
        ("4,5\ta\tb\n1\ta\tb\n", "line 1: "),
        ("nan\ta\tb\n1\ta\tb\n", "line 1: "),
        ("1\ta\t \n", "line 1: "),
        ("1\ta\tb\tc\n", "line 1: "),
        ("", "two different scores or more, got 0 in 0 pairs"),
        ("score\ta\tb\n", "got 0 in 0 pairs"),
        ("2\ta\tb\n2\tc\td\n", "got 1 in 2 pairs"),
    ],
)
def test_a_file_that_is_no_such_list_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path, content)


PAIRS = StsPairs(name="x", scores=(0, 1, 2, 3), first=("0", "0", "0", "0"), second=("90", "60", "45", "10"))


def on_circle(texts: Sequence[str]) -> Vectors:
    angles = np.deg2rad([float(text) for text in texts])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_cosines_are_ranked_against_scores() -> None:
    assert measure_sts(PAIRS, on_circle) == 1
    swapped = StsPairs(name="x", scores=(0, 1, 3, 2), first=PAIRS.first, second=PAIRS.second)
    assert measure_sts(swapped, on_circle) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert measure_sts(PAIRS, lambda texts: np.ones((len(texts), 2), dtype=np.float32)) is None
    with pytest.raises(ParityError, match="row 0 holds NaN"):
        measure_sts(PAIRS, lambda texts: np.full((len(texts), 2), np.nan, dtype=np.float32))


def test_the_difference_is_below_zero_where_the_engine_is_worse() -> None:
    assert StsFigures(n_pairs=4, engine=0.75, reference=1.0).difference == -0.25
    assert StsFigures(n_pairs=4, engine=None, reference=1.0).difference is None
