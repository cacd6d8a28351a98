from __future__ import annotations

from rich.console import Console

from mexma_benchmarks.report.checks import bar_text, checks_table, measured_text
from mexma_benchmarks.report.document import markdown
from mexma_benchmarks.result.checks import Check, Record, at_least, at_most, failed, not_measured
from mexma_benchmarks.result.result import Result

HOLDS = Check(what="a", bar=at_least(1), measured=1.0)
REPORTED = Check(what="c", measured=3.0)
LATE = not_measured("e", "out of time", is_excused=False)


def test_rows_say_bar_number_and_reason() -> None:
    latency = Check(what="one sentence", unit="ms", bar=at_most(1), measured=0.93456, note="1,000 calls")
    cosine = Check(what="cosine", bar=at_least(0.9999), measured=0.99998765)
    assert (bar_text(latency), measured_text(latency)) == ("<= 1 ms", "0.9346 ms, 1,000 calls")
    assert (bar_text(cosine), measured_text(cosine)) == (">= 0.9999", "0.999988")
    assert (bar_text(REPORTED), measured_text(Check(what="rate", unit="tokens/s", measured=612_345.6))) == (
        "",
        "612,346 tokens/s",
    )
    assert measured_text(LATE) == "not measured: out of time"
    assert measured_text(failed("f", ValueError("no [bold]"))) == "failed: ValueError: no [bold]"


def test_the_table_takes_text_as_it_is() -> None:
    console = Console(width=120, record=True)
    with console.capture() as captured:
        console.print(checks_table([HOLDS, failed("f", ValueError("[red]x[/nothing]"))], title="t"))
    lines = captured.get().splitlines()
    assert any("ValueError: [red]x[/nothing]" in line and "falls short" in line for line in lines)
    assert any(">= 1" in line and "holds" in line for line in lines)


def test_the_report_has_the_checks_of_all_steps(small_result: Result) -> None:
    small_result.records = [
        Record(step="first", checks=[HOLDS, failed("b", ValueError("a | b"))], seconds=3.2),
        Record(step="second", checks=[REPORTED]),
    ]
    section = markdown(small_result, {}).split("## Checks")[1].split("## Conditions")[0]
    assert "1 of 3 fall short." in section
    assert "| a | \\>= 1 | 1 | holds |" in section
    assert "failed: ValueError: a \\| b | falls short |" in section
    assert "Seconds of each step: first: 3; second: 0" in section


def test_a_report_without_checks_says_nothing_of_them(small_result: Result) -> None:
    assert "## Checks" not in markdown(small_result, {})
