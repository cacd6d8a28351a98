"""What `mexma parity` found, as JSON: for `--json` and `--report`, and an export's part of it.

History of the schema:
  1  first release
  2  figures by length and by language, batch invariance three ways, mining, STS; languages of the corpus
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from mexma_export.parity.gate import ReferenceVectors, Verdict
from mexma_export.parity.mining import MiningRow
from mexma_export.parity.xsim import K

SCHEMA = 2


def parity_json(verdicts: list[Verdict], reference: ReferenceVectors) -> dict[str, Any]:
    """All figures; the schema's number changes when a field does."""
    corpus, mining, sts = reference.corpus, reference.mining, reference.sts
    return {
        "schema": SCHEMA,
        "reference": reference.description,
        "corpus": {
            "name": corpus.name,
            "sha256": corpus.sha256,
            "n_sentences": len(corpus.texts),
            "languages": None if corpus.languages is None else dict(Counter(corpus.languages)),
        },
        "mining": mining and {"name": mining.name, "sha256": mining.sha256, "margin": "ratio", "k": K},
        "sts": sts and {"name": sts.name, "sha256": sts.sha256, "n_pairs": len(sts.scores)},
        "engines": [verdict_json(verdict) for verdict in verdicts],
    }


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """One engine's figures, all measured where its certificate says."""
    breakdown, mining, sts = verdict.breakdown, verdict.mining, verdict.sts
    return {
        "engine": verdict.engine.name,
        "passed": not verdict.shortfalls,
        "shortfalls": [str(shortfall) for shortfall in verdict.shortfalls],
        "certificate": dataclasses.asdict(verdict.certificate),
        "batch_invariance": dataclasses.asdict(verdict.invariance),
        "by_length": {name: dataclasses.asdict(figures) for name, figures in breakdown.by_length.items()},
        "by_language": {name: dataclasses.asdict(figures) for name, figures in breakdown.by_language.items()},
        "worst": [dataclasses.asdict(row) for row in breakdown.worst],
        "mining": mining and {"pairs": [_mining_row(row) for row in mining.rows], "mean": _mining_row(mining.mean)},
        "sts": sts and {**dataclasses.asdict(sts), "difference": sts.difference},
    }


def _mining_row(row: MiningRow) -> dict[str, Any]:
    return {**dataclasses.asdict(row), "difference": row.difference}
