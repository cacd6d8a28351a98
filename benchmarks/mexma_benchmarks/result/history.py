"""Results of earlier schemas, brought up to date as JSON. result.py has what changed in each."""

from __future__ import annotations

from typing import Any

from mexma_benchmarks.result.checks import without_folders

SCHEMA = 4


def brought_up_to_date(document: dict[str, Any]) -> dict[str, Any] | None:
    """The document in the current schema, otherwise unchecked; None for a schema that is not read here.

    Raises AttributeError, KeyError or TypeError for a document that is nothing of the kind.
    """
    match document.get("schema"):
        case 4:
            return document
        case 3:
            return _without_clients(document)
        case 2:
            return _without_clients(_of_runs(document))
        case 1 if "records" in document:
            return _of_gpu_check(document)
        case _:
            return None


def _of_runs(document: dict[str, Any]) -> dict[str, Any]:
    """What the first of them had not yet is empty."""
    for model in document["models"]:
        for timing in model["timings"]:
            timing.setdefault("calls_ms", {})
        for subject in model["subjects"]:
            subject.setdefault("peak_rss_after_bytes", None)
            if subject["fidelity"]:
                subject["fidelity"].setdefault("calibration", None)
    return document | {"records": []}


def _without_clients(document: dict[str, Any]) -> dict[str, Any]:
    for model in document["models"]:
        model |= {"client_runs": [], "beside_runs": []}
    return document | {"schema": SCHEMA}


def _of_gpu_check(document: dict[str, Any]) -> dict[str, Any]:
    """Its checks had a verdict, which follows from the rest."""
    for record in document["records"]:
        for check in record["checks"]:
            check.pop("verdict")
            check["note"] = without_folders(check["note"])
    return {
        "schema": SCHEMA,
        "environment": document["environment"],
        "n_threads": _n_threads(document["environment"]["hardware"]),
        "settings": {name: document[name] for name in ("device", "model", "is_quick")},
        "is_complete": True,  # every step has a record, measured or not
        "models": [],
        "records": document["records"],
    }


def _n_threads(hardware: dict[str, Any]) -> int:
    """It gave every subject the usable cores."""
    n: int = hardware["n_physical_cores"]
    return n if hardware["cpu_quota"] is None else max(1, min(n, int(hardware["cpu_quota"])))
