from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from mexma_benchmarks.environment import detect_environment
from mexma_benchmarks.report import markdown, unstable
from mexma_benchmarks.result import SCHEMA, ModelResult, Result, Timing
from mexma_export.parity import compare


def timing(**samples_ms: list[float]) -> Timing:
    return Timing(workload="1 x 16", n_sentences=4, n_tokens=64, baseline="theirs", samples_ms=samples_ms)


@pytest.fixture
def result() -> Result:
    model = ModelResult(
        name="small",
        model_id="standin:small",
        weights_sha256="0" * 64,
        n_layers=2,
        hidden_size=8,
        pooling="cls",
        reference="transformers 5",
    )
    environment = dataclasses.replace(detect_environment("x"), load_average=0.0)
    return Result(environment=environment, n_threads=2, is_complete=True, models=[model])


def test_a_row_has_medians_of_the_samples_of_their_ratios_and_of_their_differences(result: Result) -> None:
    theirs, ours = [40.0, 40.0, 80.0, 40.0, 40.0, 44.0], [20.0, 20.0, 40.0, 20.0, 20.0, 20.0]
    result.models[0].timings.append(timing(theirs=theirs, ours=ours))

    text = markdown(result)

    assert "| 1 x 16 | theirs | 40 [40, 80] | 100 | 1 |  |" in text
    assert "| 1 x 16 | ours | 20 [20, 40] | 200 | 2.00 [2.00, 2.20] | -20.00 [-40.00, -20.00] |" in text
    assert "unstable" not in text
    assert "did not finish" not in text


def test_the_ratio_is_the_median_of_the_rounds_not_of_the_medians(result: Result) -> None:
    # The medians are 35 and 27.5 ms.
    theirs, ours = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0], [5.0, 10.0, 15.0, 40.0, 50.0, 60.0]
    result.models[0].timings.append(timing(theirs=theirs, ours=ours))

    assert "| 1.50 [1.00, 2.00] |" in markdown(result)


def test_an_interval_of_few_rounds_is_marked(result: Result) -> None:
    result.models[0].timings.append(timing(theirs=[2.0] * 5, ours=[1.0] * 5))

    assert "1 [1, 1]*" in markdown(result)


def test_an_unstable_run_says_which_pairs_differed(result: Result) -> None:
    result.models[0].timings.append(timing(theirs=[10.0] * 8, steady=[5.0] * 8, jumpy=[5.0, 9.0] * 4))

    warnings = list(unstable(result))

    assert len(warnings) == 1
    assert "small, 1 x 16, jumpy" in warnings[0]
    assert warnings[0] in markdown(result)


def test_a_machine_that_was_busy_is_told_of(result: Result) -> None:
    result.environment = dataclasses.replace(result.environment, load_average=3.0)

    assert "3.0 processes were running already" in markdown(result)


def test_an_interrupted_run_shows_what_it_has(result: Result) -> None:
    result.is_complete = False
    result.models[0].timings += [timing(theirs=[2.0], ours=[1.0]), timing(theirs=[], ours=[])]

    text = markdown(result)

    assert text.count("| ours |") == 1
    assert "did not finish" in text


def test_a_saved_result_holds_every_sample(result: Result, tmp_path: Path) -> None:
    vectors = np.eye(3, dtype=np.float32)
    result.models[0].timings.append(timing(theirs=[2.0, 3.0], ours=[1.0, 1.5]))
    result.models[0].fidelity["fused.fp32"] = compare(vectors, vectors)

    result.save(tmp_path / "new" / "results.json")

    (path,) = (tmp_path / "new").iterdir()
    saved = json.loads(path.read_text())
    assert saved["schema"] == SCHEMA
    assert saved["models"][0]["timings"][0]["samples_ms"] == {"theirs": [2.0, 3.0], "ours": [1.0, 1.5]}
    assert saved["models"][0]["fidelity"]["fused.fp32"]["cosine_min"] == 1.0
    assert saved["environment"]["hardware"]["n_logical_cpus"] >= 1
