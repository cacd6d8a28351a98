"""Judging what was written: the engines of a job that may be published, and why the others may not."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mexma_export.bundle.contents import with_engines
from mexma_export.bundle.engines import Written
from mexma_export.bundle.jobs import QuantizedJob, next_job
from mexma_export.checkpoint.checkpoint import Checkpoint
from mexma_export.parity.gate import ReferenceVectors, Verdict, judge, reference_for
from mexma_runtime.backends import device_for
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry, Manifest
from mexma_runtime.errors import EngineUnavailableError, ParityError
from mexma_runtime.terminal import Progress


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The engines of one job, each as it was found."""

    written: Written
    verdicts: tuple[Verdict, ...] = ()
    """Of the engines whose vectors could be compared."""
    unjudged: tuple[EngineEntry, ...] = ()
    """Those that nothing here runs."""
    failed: tuple[str, ...] = ()
    """Why the vectors of others could not be compared: NaN in them, say, or no VNNI here."""

    @classmethod
    def unchecked(cls, written: Written) -> Self:
        """All of a job's engines, where parity is not to be checked."""
        return cls(written=written, unjudged=written.engines)

    @property
    def retry(self) -> QuantizedJob | None:
        """The job with more products in float, where it missed its cosine and more are allowed: see jobs.next_job."""
        job = self.written.job
        return next_job(job, self.written.engines, self._cosine) if isinstance(job, QuantizedJob) else None

    @property
    def admitted(self) -> tuple[EngineEntry, ...]:
        """The engines that may be published, with their certificates."""
        if self.missed_cosine:
            return self.unjudged
        return (*self.unjudged, *(verdict.engine for verdict in self.verdicts if not verdict.shortfalls))

    @property
    def refused(self) -> tuple[str, ...]:
        """Why the other engines may not be published: a line for each reason."""
        if self.missed_cosine:
            return (*self.failed, self.missed_cosine)
        return (*self.failed, *(f"{v.engine.name}: {shortfall}" for v in self.verdicts for shortfall in v.shortfalls))

    @property
    def _cosine(self) -> float:
        """The least mean cosine of all engines of the job; -1 where none could be compared."""
        return min((verdict.figures.cosine_mean for verdict in self.verdicts), default=-1.0)

    @property
    def missed_cosine(self) -> str | None:
        """By how much the job misses its `min_cosine`, in words; None where it does not."""
        job = self.written.job
        if not isinstance(job, QuantizedJob) or job.min_cosine is None or self._cosine >= job.min_cosine:
            return None
        return (
            f"recipe {job.recipe.name}: mean cosine: expected >= {job.min_cosine:.9g}, got {self._cosine:.9g} with "
            f"{job.float_share:.1%} of the multiplications in float, and {job.max_float_share:.1%} are allowed: allow "
            "more by --max-float-share, or choose "
            + ("fp16" if job.recipe.is_for_tensorrt else "a closer recipe, or fp32")
        )


class Judge:
    """Holds engines of one checkpoint against its reference, whose vectors are made when the first engine asks."""

    def __init__(self, checkpoint: Checkpoint, folder: Path, manifest: Manifest, device: str, report: Progress) -> None:
        """`folder`, `manifest`: the bundle before the export; `device`: where float engines run."""
        self._checkpoint, self._folder, self._manifest = checkpoint, folder, manifest
        self._device, self._report = device, report
        self._reference: ReferenceVectors | None = None

    def judge(self, written: Written) -> Judged:
        """The verdicts on what was written."""
        candidate = Bundle(folder=self._folder, manifest=with_engines(self._manifest, written.engines, written.files))
        verdicts, unjudged, failed = [], [], []
        for engine in written.engines:
            device = device_for(engine, self._device)
            if device is None:
                unjudged.append(engine)
                continue
            progress = functools.partial(self._report, f"judging {engine.name}")
            try:
                reference = self._reference_of(candidate)
                verdicts.append(judge(candidate, engine, reference, device=device, progress=progress))
            except (ParityError, EngineUnavailableError) as error:
                failed.append(str(error))
        return Judged(written=written, verdicts=tuple(verdicts), unjudged=tuple(unjudged), failed=tuple(failed))

    def _reference_of(self, candidate: Bundle) -> ReferenceVectors:
        if self._reference is None:
            progress = functools.partial(self._report, "reference vectors")
            self._reference = reference_for(self._checkpoint, candidate, progress=progress)
        return self._reference
