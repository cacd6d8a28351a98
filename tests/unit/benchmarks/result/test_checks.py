from __future__ import annotations

import math

import pytest

from mexma_benchmarks.result.checks import (
    Check,
    Verdict,
    at_least,
    at_most,
    exit_code,
    failed,
    not_measured,
    without_folders,
)

HOLDS = Check(what="a", bar=at_least(1), measured=1.0)
SHORT = Check(what="b", bar=at_most(2), measured=2.1)
REPORTED = Check(what="c", measured=3.0)
EXCUSED = not_measured("d", "it needs CUDA", is_excused=True)
LATE = not_measured("e", "out of time", is_excused=False)


@pytest.mark.parametrize(
    ("check", "verdict"),
    [
        (HOLDS, Verdict.HOLDS),
        (Check(what="at the bar", bar=at_most(2), measured=2.0), Verdict.HOLDS),
        (SHORT, Verdict.FALLS_SHORT),
        (Check(what="NaN", bar=at_most(2), measured=math.nan), Verdict.FALLS_SHORT),
        (REPORTED, Verdict.REPORTED),
        (EXCUSED, Verdict.NOT_MEASURED),
        (LATE, Verdict.FALLS_SHORT),
        (failed("f", ValueError("no")), Verdict.FALLS_SHORT),
    ],
)
def test_the_verdict_follows(check: Check, verdict: Verdict) -> None:
    assert check.verdict == verdict


def test_the_exit_code_is_1_where_anything_falls_short_or_nothing_was_measured() -> None:
    assert exit_code([HOLDS, REPORTED, EXCUSED]) == 0
    assert [exit_code([HOLDS, bad]) for bad in (SHORT, LATE, failed("f", ValueError()))] == [1, 1, 1]
    assert exit_code([]) == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("28 passed (/tmp/gc/gpu-tests.log)", "28 passed (gpu-tests.log)"),
        ("bundle='/tmp/gc/bundles/x', ~/y.json: no", "bundle='x', y.json: no"),
        ("http://127.0.0.1:9/v1/embeddings refused", "http://127.0.0.1:9/v1/embeddings refused"),
        ("3/4 of out/gpu-check.log", "3/4 of out/gpu-check.log"),
        ("/one", "one"),
        ("[red]x[/red]", "[red]x[/red]"),
    ],
)
def test_folders_of_a_machine_are_left_out(text: str, shown: str) -> None:
    assert without_folders(text) == shown


def test_a_failure_names_no_folder() -> None:
    assert failed("f", ValueError("/home/me/bundle: no engine")).note == "failed: ValueError: bundle: no engine"
