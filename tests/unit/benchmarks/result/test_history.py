"""Results of all schemas are read, and written in the latest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mexma_benchmarks.report.document import markdown
from mexma_benchmarks.result.checks import Check, Record, at_least
from mexma_benchmarks.result.history import SCHEMA
from mexma_benchmarks.result.result import Result
from mexma_runtime.errors import UsageError

COMMITTED = Path(__file__).parents[4] / "benchmarks" / "results"


FILES = sorted([*COMMITTED.glob("*/result.json"), *COMMITTED.glob("*/gpu-check.json")])


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_every_committed_result_is_read_and_stays_what_it_is(file: Path, tmp_path: Path) -> None:
    result = Result.load(file)
    assert result.is_complete
    assert result.schema == SCHEMA
    assert result.models or result.checks
    result.save(tmp_path / "again.json")
    assert Result.load(tmp_path / "again.json") == result
    assert markdown(result, {})


def test_what_gpu_check_wrote_by_itself_has_its_checks_and_samples() -> None:
    [file] = COMMITTED.glob("2026-11-26-nvidia-h200/gpu-check.json")
    before: dict[str, Any] = json.loads(file.read_text())
    result = Result.load(file)

    written = [check for record in before["records"] for check in record["checks"]]
    assert [(check.what, check.measured, check.verdict) for check in result.checks] == [
        (check["what"], check["measured"], check["verdict"]) for check in written
    ]
    assert [record.samples for record in result.records] == [record["samples"] for record in before["records"]]
    assert (result.settings["model"], result.n_threads) == (before["model"], 16)
    report = markdown(result, {})
    assert "one sentence of 32 tokens: median | \\<= 1 ms | 1.436 ms" in report


def test_samples_checks_and_calls_survive(small_result: Result, tmp_path: Path) -> None:
    check = Check(what="\u00e9", unit="ms", bar=at_least(0.5), measured=1.0, note="n")
    small_result.records = [Record(step="s", checks=[check], samples={"some_ms": [[1.5], []], "n": {"a": 1}})]
    small_result.save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json") == small_result


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"n_threads": "two"}, 'n_threads: expected int, got "two"'),
        ({"records": [{"step": "s"}]}, "records[0]: missing fields: checks, samples, seconds"),
        ({"unknown": 1}, "unknown"),
        ({"schema": 5}, "schema 5, this version reads 4"),
        ({"schema": 0}, "schema 0, this version reads 4"),
        ({"schema": 2, "models": None}, "does not fit schema 2"),
    ],
)
def test_what_does_not_fit_is_told_by_its_field(
    small_result: Result, changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    small_result.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(UsageError) as raised:
        Result.load(path)
    assert said in str(raised.value)


def test_a_status_that_is_none_of_the_known_is_refused(small_result: Result, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    small_result.save(path)
    document = json.loads(path.read_text())
    document["models"][0]["subjects"][0]["status"] = "lost"
    path.write_text(json.dumps(document))
    with pytest.raises(
        UsageError, match=r"models\[0\].subjects\[0\].status: expected one of measured, unavailable, failed"
    ):
        Result.load(path)
