from __future__ import annotations

import dataclasses

import pytest

from mexma_export.parity.gate import ReferenceVectors, Verdict
from mexma_export.parity.report_json import SCHEMA, parity_json


def test_everything_measured_is_there(verdicts: list[Verdict], parity_reference: ReferenceVectors) -> None:
    document = parity_json(verdicts, parity_reference)
    corpus, mining, sts = parity_reference.corpus, parity_reference.mining, parity_reference.sts
    assert mining
    assert sts
    assert document["schema"] == SCHEMA == 2
    assert document["corpus"] == {
        "name": corpus.name,
        "sha256": corpus.sha256,
        "n_sentences": 4,
        "languages": {"en": 3, "[b]": 1},
    }
    assert document["mining"] == {"name": "[tatoeba]", "sha256": mining.sha256, "margin": "ratio", "k": 4}
    assert document["sts"] == {"name": "[sts].tsv", "sha256": sts.sha256, "n_pairs": 2}
    assert [row["passed"] for row in document["engines"]] == [True, True, False]
    bad, verdict = document["engines"][2], verdicts[2]
    assert bad["shortfalls"][0].startswith("cosine_min: expected >= ")
    assert bad["certificate"] == dataclasses.asdict(verdict.certificate)
    assert bad["by_length"]["1-8"] == dataclasses.asdict(verdict.breakdown.by_length["1-8"])
    assert bad["by_language"]["en"]["n_sentences"] == 3
    assert [row["index"] for row in bad["worst"]] == [row.index for row in verdict.breakdown.worst]
    assert bad["batch_invariance"]["shuffled"] == {"cosine_min": 0.5, "max_abs_difference": 0.0}
    assert bad["mining"]["pairs"][0] == {
        "name": "deu-eng",
        "n_sentences": 200,
        "engine_error_rate": 1.0,
        "reference_error_rate": 0.975,
        "difference": pytest.approx(0.025),
    }
    assert bad["mining"]["mean"]["difference"] == pytest.approx(0.02)
    assert bad["sts"] == {"n_pairs": 2, "engine": 0.75, "reference": 0.8125, "difference": -0.0625}


def test_what_was_not_asked_is_null(verdicts: list[Verdict], parity_reference: ReferenceVectors) -> None:
    corpus = dataclasses.replace(parity_reference.corpus, languages=None)
    reference = dataclasses.replace(parity_reference, corpus=corpus, mining=None, sts=None)
    document = parity_json([dataclasses.replace(verdicts[0], mining=None, sts=None)], reference)
    assert document["corpus"]["languages"] is document["mining"] is document["sts"] is None
    assert document["engines"][0]["mining"] is document["engines"][0]["sts"] is None
