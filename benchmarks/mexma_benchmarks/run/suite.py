"""One checkpoint, every subject: fidelity, fixed shapes, real lengths, load, cold starts. Read from top to bottom."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mexma_benchmarks.adapters.protocol import ONCE, Task, Turn, peak_rss_bytes
from mexma_benchmarks.result.checks import without_folders
from mexma_benchmarks.result.environment import device_bytes
from mexma_benchmarks.result.estimates import estimate_median
from mexma_benchmarks.result.result import ModelResult, SubjectResult, Timing, Workload
from mexma_benchmarks.run.clients import measure_clients
from mexma_benchmarks.run.conversion import convert, folder_bytes
from mexma_benchmarks.run.fidelity import Judge, calibration_of
from mexma_benchmarks.run.heat import Heat
from mexma_benchmarks.run.prepared import Prepared
from mexma_benchmarks.run.process import LIMIT_S, SubjectError, SubjectProcess
from mexma_benchmarks.run.sizes import RunSizes
from mexma_benchmarks.run.subjects import Subject
from mexma_benchmarks.run.timing import take_turns
from mexma_benchmarks.run.underload import measure_load
from mexma_benchmarks.run.workload import SHORT_TEXT, Job, drawn_texts, ragged_job, shape_job, text_job, thinned
from mexma_export.corpus.corpus import Corpus
from mexma_runtime.errors import MexmaError
from mexma_runtime.hardware import detect_hardware
from mexma_runtime.terminal import Progress

MEMORY_SHARE = 0.8
"""Of the free memory that subjects may fill together."""
OVERHEAD_BYTES = 400 << 20
"""Of a library, beside its weights."""
COPIES = 1.0
"""Times the size of its files that a subject takes, on average: some map them, some take two."""

N_LOADING_THREADS = 2
"""Cores that a subject that starts keeps busy: the more there are, the more start side by side."""

ONE_TEXT = Turn(n_calls=9, n_warmups=1)
"""How often the baseline embeds one text, where nothing else has told how long it takes."""

Chosen = dict[str, tuple[Subject, Task]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a model is measured with."""

    sizes: RunSizes
    corpus: Corpus | None
    """Real text; None: texts of drawn lengths, and the package's own sentences for fidelity."""
    cache: Path
    """Where converted checkpoints are kept."""
    calibration: Path
    """Sentences, one a line, for peers that calibrate."""
    save: Callable[[], None]
    report: Progress
    limit_s: float = LIMIT_S
    """Longest that a subject may take for one answer."""
    is_over: Callable[[], bool] = lambda: False
    """Whether no workload may be begun any more."""


def measure_model(prepared: Prepared, subjects: Sequence[Subject], model: ModelResult, run: Run) -> None:
    """Measure every subject, the baseline among them, into `model`; saved after each step.

    It may hold subjects already, of an earlier call: their rows are kept, and their times go on.
    """
    chosen = _choose(prepared, subjects, model, run)
    judge = _judge(prepared, chosen, model, run)
    run.save()
    jobs = _jobs(prepared, run)
    available = detect_hardware().memory_available_bytes or 0
    sizes = {name: model.subject(name).disk_bytes or 0 for name in chosen}
    heats = group_by_memory(chosen, model.baseline, sizes, available)
    n_before = 1 + max((timing.heat for timing in model.timings), default=-1)
    for number, tasks in enumerate(heats):
        of = f" ({number + 1}/{len(heats)})" if len(heats) > 1 else ""
        with Heat(n_before + number, model, limit_s=run.limit_s) as heat:
            heat.start(list(tasks.values()), n_at_once=max(1, detect_hardware().n_usable_cores // N_LOADING_THREADS))
            if not heat.is_running(model.baseline):
                raise MexmaError(f"{model.baseline}, which all is held against: {model.subject(model.baseline).reason}")
            new = [name for name in heat.names("fidelity") if not model.subject(name).fidelity] if judge else []
            for done, name in enumerate(new):
                assert judge is not None
                run.report(f"{prepared.name}, fidelity{of}", done, len(new))
                judge.judge(heat, name, model, calibration_of(chosen[name][0], prepared))
                run.report(f"{prepared.name}, fidelity{of}", done + 1, len(new))
                run.save()
            for job in jobs:
                if run.is_over():
                    break
                what = f"{prepared.name}, {job.workload.name}{of}"
                heat.time(job, run.sizes.n_rounds, functools.partial(run.report, what))
                run.save()
            _measure_load(heat, model, prepared, jobs[-1], run)
            _measure_clients(heat, model, prepared, jobs[-1], run)
            for name in heat.names("cold start"):  # of the others another process computes, or another row tells it
                result, pid = model.subject(name), heat.pid(name)
                result.peak_rss_after_bytes, result.device_bytes = peak_rss_bytes(pid), device_bytes(pid)
    _measure_cold_starts(chosen, model, run, prepared)


def _judge(prepared: Prepared, chosen: Chosen, model: ModelResult, run: Run) -> Judge | None:
    """None where there is no vector left to be held against the reference's."""
    if not any(
        "fidelity" in subject.measured and not model.subject(name).fidelity for name, (subject, _) in chosen.items()
    ):
        return None
    what = f"{prepared.name}, reference vectors"
    n_judged = run.sizes.n_judged_standin if prepared.is_standin else run.sizes.n_judged
    return Judge.of(prepared, run.corpus, n_judged, model, functools.partial(run.report, what))


def _choose(prepared: Prepared, subjects: Sequence[Subject], model: ModelResult, run: Run) -> Chosen:
    """The subjects that can be measured, each with its task; the others' rows say why not."""
    chosen: Chosen = {}
    known = {result.name: result for result in model.subjects}
    for subject in subjects:
        run.report(f"{prepared.name}, preparing", len(chosen), len(subjects))
        result = known.get(subject.name) or SubjectResult(
            name=subject.name, role=subject.role, adapter=subject.adapter, options=dict(subject.options)
        )
        if subject.name not in known:
            model.subjects.append(result)
        result.status, result.reason = "measured", None  # what it was in an earlier call is in the records of that
        if subject.unavailable:
            result.status, result.reason = "unavailable", subject.unavailable
            continue
        task = dataclasses.replace(prepared.task, options=dict(subject.options))
        result.disk_bytes = prepared.subject_bytes(subject)
        if subject.converts:
            task.options["calibration"] = str(run.calibration)
            try:
                made = convert(subject, task, weights_sha256=model.weights_sha256, cache=run.cache)
            except SubjectError as error:
                result.status, result.reason = "failed", without_folders(str(error))
                continue
            task = dataclasses.replace(task, folder=str(made.folder))
            result.prepare_s, result.disk_bytes = made.seconds, folder_bytes(made.folder)
        chosen[subject.name] = subject, task
    run.report(f"{prepared.name}, preparing", len(subjects), len(subjects))
    return chosen


def _jobs(prepared: Prepared, run: Run) -> list[Job]:
    """Fixed shapes, one text, and last the texts of real or drawn lengths, their ids before them."""
    vocab_size = prepared.bundle.manifest.model.vocab_size
    shapes = [(n, length) for n, length in run.sizes.grid if length <= prepared.task.max_tokens]
    jobs = [shape_job(n, length, vocab_size, run.sizes.one_sentence if n == 1 else ONCE) for n, length in shapes]
    jobs.append(text_job(prepared.prompted([SHORT_TEXT]), prepared.tokenize, name="1 text"))
    if run.corpus:
        texts, what = thinned(run.corpus, run.sizes.n_texts), f"texts of {run.corpus.name}"
    else:
        texts, what = drawn_texts(prepared.tokenize, run.sizes.n_texts), "texts of drawn lengths"
    prompted, name = prepared.prompted(texts), f"{len(texts)} {what}"
    if run.sizes.with_their_ids:
        jobs.append(ragged_job(prompted, prepared.tokenize, name=name))
    jobs.append(text_job(prompted, prepared.tokenize, name=name))
    return jobs


def group_by_memory(chosen: Chosen, baseline: str, sizes: Mapping[str, int], available_bytes: int) -> list[Chosen]:
    """Subjects that fit into free memory together, by the bytes of their files; two at least, the baseline in every
    group; none without it. Small ones first, so that int8 engines take turns with each other."""
    if baseline not in chosen:
        return []
    room = MEMORY_SHARE * available_bytes - _memory_bytes(sizes[baseline])
    groups: list[Chosen] = []
    left = 0.0
    for name in sorted((name for name in chosen if name != baseline), key=sizes.__getitem__):
        needed = _memory_bytes(sizes[name])
        if needed > left:
            groups.append({baseline: chosen[baseline]})
            left = room
        groups[-1][name] = chosen[name]
        left -= needed
    return groups or [{baseline: chosen[baseline]}]


def _memory_bytes(size: int) -> float:
    return COPIES * size + OVERHEAD_BYTES


def _measure_load(heat: Heat, model: ModelResult, prepared: Prepared, job: Job, run: Run) -> None:
    baseline_ms = [
        ms
        for timing in model.timings
        if timing.workload.kind == "texts" and timing.workload.batch == 1
        for ms in timing.samples_ms.get(model.baseline, [])
    ]
    under_load = [name for name in heat.names("load") if not any(done.subject == name for done in model.load_runs)]
    if not run.sizes.all_under_load:
        under_load = [name for name in under_load if name in (model.baseline, *_first_engine(model))]
    if under_load and not baseline_ms:
        request = {"do": "encode", "texts": [SHORT_TEXT], "turn": dataclasses.asdict(ONE_TEXT)}
        answer = heat.ask(model.baseline, request)
        baseline_ms = [answer["ms"]] if answer else []
    if baseline_ms and under_load:
        measure_load(
            heat,
            under_load,
            job.request["texts"],
            run.sizes,
            model,
            one_text_ms=estimate_median(baseline_ms).median,
            report=lambda name, rate: run.report(f"{prepared.name}, under load: {name}, {rate:.3g}/s", 0, 1),
        )
        run.save()


def _first_engine(model: ModelResult) -> list[str]:
    """The first engine, with every runtime that runs it."""
    engines = [subject for subject in model.subjects if subject.role == "engine"]
    return [subject.name for subject in engines if subject.options == engines[0].options]


def _measure_clients(heat: Heat, model: ModelResult, prepared: Prepared, job: Job, run: Run) -> None:
    names = [name for name in heat.names("clients") if model.subject(name).role == "engine"]
    if not run.sizes.all_under_load:
        names = [name for name in names if name in _first_engine(model)]
    names = [name for name in names if not any(done.subject == name for done in model.client_runs)]
    if names:
        measure_clients(
            heat,
            names,
            job.request["texts"],
            run.sizes,
            model,
            report=lambda name: run.report(f"{prepared.name}, many callers: {name}", 0, 1),
        )
        run.save()


def _measure_cold_starts(chosen: Chosen, model: ModelResult, run: Run, prepared: Prepared) -> None:
    """Process start to first vector, the files in memory already; one process at a time."""
    starters = {
        name: functools.partial(_start_once, subject, task, model.subject(name))
        for name, (subject, task) in chosen.items()
        if "cold start" in subject.measured
    }
    if not starters:
        return
    workload = Workload(kind="cold start", name="process start to first vector", n_sentences=1, n_tokens=0)
    timing = Timing(workload=workload, heat=0)
    model.timings.append(timing)
    what = f"{prepared.name}, cold starts"
    for done, started in zip(range(run.sizes.n_cold_starts + 1), take_turns(starters), strict=False):
        for name, (ms, peak_bytes) in ((name, one) for name, one in started.items() if one and done):
            timing.samples_ms.setdefault(name, []).append(ms)
            if peak_bytes:
                model.subject(name).peak_rss_bytes.append(peak_bytes)
        run.report(what, done, run.sizes.n_cold_starts)
        run.save()


def _start_once(subject: Subject, task: Task, result: SubjectResult) -> tuple[float, int | None] | None:
    if result.status == "failed":
        return None
    try:
        with SubjectProcess(subject.adapter, task, python=subject.python, runtime=subject.runtime) as process:
            return process.ready.start_ms, process.ready.peak_rss_bytes
    except SubjectError as error:
        result.status, result.reason = "failed", without_folders(str(error))
        return None
