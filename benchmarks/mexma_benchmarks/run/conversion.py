"""What a subject makes of the checkpoint before it can run, kept for the next time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from mexma_benchmarks.adapters.protocol import Task
from mexma_benchmarks.run.process import prepare
from mexma_benchmarks.run.subjects import Subject

MARKER = "converted.json"


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A converted checkpoint."""

    folder: Path
    seconds: float
    """That it took, when it was made."""


def convert(subject: Subject, task: Task, *, weights_sha256: str, cache: Path) -> Conversion:
    """Find or make in `cache` what `subject` runs; SubjectError says why it could not be made.

    What was made belongs to the weights, the task and the subject's environment; half-made folders are made again.
    """
    settings = dataclasses.asdict(dataclasses.replace(task, folder="", first_text="", checkpoint="", tokenizer=""))
    if calibration := settings["options"].pop("calibration", None):
        settings["calibration"] = Path(calibration).read_text(encoding="utf-8")
    content = json.dumps([weights_sha256, settings, subject.environment], sort_keys=True)
    key = hashlib.sha256(content.encode()).hexdigest()[:12]
    slug = re.sub(r"[^\w.]+", "-", subject.name)
    folder = cache / f"{slug}-{key}"
    marker = folder / MARKER
    if not marker.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        start_s = time.monotonic()
        prepare(subject.adapter, dataclasses.replace(task, folder=str(folder)), python=subject.python)
        marker.write_text(json.dumps({"seconds": time.monotonic() - start_s}), encoding="utf-8")
    return Conversion(folder=folder, seconds=json.loads(marker.read_text(encoding="utf-8"))["seconds"])


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`, the marker aside."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
