"""The report of a result: Markdown, the same as one page of HTML, and charts."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from mexma_benchmarks.report import sections
from mexma_benchmarks.report.callers import many_callers
from mexma_benchmarks.report.charts import FIDELITY, draw_charts, slugs
from mexma_benchmarks.report.checks import checks_section
from mexma_benchmarks.report.fidelity import fidelity_section, kept_neighbours
from mexma_benchmarks.report.formats import NOTHING, code, escape, listing, megabytes, number, table
from mexma_benchmarks.report.html import page
from mexma_benchmarks.result.environment import Environment
from mexma_benchmarks.result.estimates import UNSTABLE_SPREAD, relative_spread
from mexma_benchmarks.result.measured import fidelity_model, largest_model, main_texts, series
from mexma_benchmarks.result.result import ModelResult, Result
from mexma_runtime.bundle.whole_files import write_whole
from mexma_runtime.errors import file_errors

BUSY_LOAD = 0.5
METHOD = (
    "Every subject is a process of its own, with the same weights, the same sentences and the same number of threads. "
    "All but the one whose turn it is are stopped.",
    "Subjects take turns: each round runs every subject once, and the order is reversed from round to round. A first "
    "round warms up and is not counted.",
    "A figure is the median of the rounds. In brackets is its 95 % interval from order statistics, which assumes "
    "nothing about the distribution; with a \\* it is the range of too few rounds for 95 %.",
    "Times as fast: the baseline's time over the subject's in the same round, and of that the median of the rounds; "
    "over 1 is faster. What slows a whole round, such as another program, cancels.",
    "Subjects that do not fit into memory together run in groups, each with the baseline: a ratio is of one group.",
    "Every sample is in the JSON beside this report.",
)


def write_report(result: Result, folder: Path) -> list[Path]:
    """Write report.md, report.html and a PNG a chart into `folder`, each whole at any time: their paths.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    charts = draw_charts(result)
    names = {chart.name: f"{chart.name}.png" for chart in charts}
    text = markdown(result, names)
    drawings = {names[chart.name]: chart.svg() for chart in charts}
    contents = {names[chart.name]: chart.png() for chart in charts}
    contents |= {
        "report.html": page(text, title=_title(result), drawings=drawings).encode(),
        "report.md": text.encode(),
    }
    with file_errors(folder, "cannot be made a folder"):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_whole(folder / name, content)
    return [folder / name for name in reversed(contents)]


def markdown(result: Result, charts: Mapping[str, str]) -> str:
    """All that was measured, and what to doubt. `charts`: name (`draw_charts`) -> where its picture is. Pure."""
    blocks = [f"# {escape(_title(result))}", *_doubts(result), *_summary(result.models, charts)]
    blocks += checks_section(result.records)
    blocks += ["## Conditions", _conditions(result), "## How it was measured", listing(METHOD)]
    for model, slug in zip(result.models, slugs(result.models), strict=True):
        blocks += _model(model, slug, charts)
    return "\n\n".join(blocks) + "\n"


def unstable(result: Result) -> Iterator[str]:
    """A line for a machine that was busy, and for each subject whose ratio to the baseline differs much by round."""
    if result.environment.load_average > BUSY_LOAD:
        yield f"{result.environment.load_average:.1f} processes were running or waiting already when it started"
    for model in result.models:
        spreads: dict[str, list[str]] = {}
        for one in series(model):
            if one.speedups and (spread := relative_spread(one.speedups)) > UNSTABLE_SPREAD:
                spreads.setdefault(one.subject, []).append(f"{escape(one.workload.name)} ({spread:.0%})")
        for name, workloads in spreads.items():
            yield f"{escape(model.name)}, {escape(name)}: {', '.join(workloads)}"


def _title(result: Result) -> str:
    measured = ", ".join(model.name for model in result.models) or "checks" * bool(result.records)
    return f"Benchmark: {measured or 'nothing measured'}"


def _doubts(result: Result) -> Iterator[str]:
    if not result.is_complete:
        yield "**This run did not finish: what it had not reached is missing.**"
    if lines := list(unstable(result)):
        yield (
            "**This run was unstable; measure again on an idle machine.** In brackets: the width of the middle half of "
            "the rounds' ratios, over their median."
        )
        yield listing(lines)


def _summary(models: Iterable[ModelResult], charts: Mapping[str, str]) -> Iterator[str]:
    """The largest model's texts, and the neighbours kept where weights are trained."""
    fast, faithful = largest_model([model for model in models if main_texts(model)]), fidelity_model(models)
    if fast is None:
        return
    measured = main_texts(fast)
    workload = measured[0].workload
    fidelities = {subject.name: subject.fidelity for subject in faithful.subjects} if faithful else {}
    peaks = {subject.name: subject.peak_rss_bytes for subject in fast.subjects}
    sizes = {subject.name: subject.disk_bytes for subject in fast.subjects}
    starts = {one.subject: one.ms.median for one in series(fast) if one.workload.kind == "cold start"}
    yield "## Summary"
    judged = f"; neighbours kept on {escape(faithful.name)}, {escape(faithful.fidelity_corpus)}" if faithful else ""
    yield f"Texts in, {escape(workload.name)}, on {escape(fast.name)}{judged}."
    rows = []
    ratios = {one.subject: one.speedup.median for one in measured if one.speedup} | {fast.baseline: 1.0}
    for one in sorted(measured, key=lambda one: ratios.get(one.subject, 0.0), reverse=True):
        kept = fidelities.get(one.subject)
        start_ms, peak = starts.get(one.subject), peaks.get(one.subject)
        rows.append(
            [
                escape(one.subject),
                number(one.sentences_per_s),
                sections.speedup(fast, one),
                kept_neighbours(kept),
                NOTHING if start_ms is None else f"{number(start_ms / 1e3)} s",
                megabytes(float(np.median(peak)) if peak else None),
                megabytes(sizes.get(one.subject)),
            ]
        )
    baseline = f"times as fast as {escape(fast.baseline)}"
    yield table(["subject", "sentences/s", baseline, "ten nearest kept", "cold start", "peak memory", "on disk"], rows)
    yield from _pictures(charts, "Fidelity against speed", FIDELITY)


def _conditions(result: Result) -> str:
    e, hardware = result.environment, result.environment.hardware
    quota = "" if hardware.cpu_quota is None else f", quota {hardware.cpu_quota:g}"
    cores = f"{hardware.n_physical_cores} cores ({hardware.n_logical_cpus} logical{quota})"
    settings = [f"{name} {value}" for name, value in result.settings.items()]
    facts = {
        "processor": f"{hardware.processor}, {cores}",
        "instruction sets": ", ".join(hardware.instruction_sets) or "none known",
        "GPU": "; ".join(e.gpus) or "none",
        "memory": megabytes(hardware.memory_total_bytes),
        "system": e.system,
        "threads of every subject": str(result.n_threads),
        "running already": f"{e.load_average:.1f} processes",
        "versions": _versions(e),
        "environment variables": ", ".join(f"{name}={value}" for name, value in e.variables.items())
        or "none that matter",
        "commit": e.commit or "unknown",
        "settings": ", ".join(settings) or "none",
        "started": e.started,
    }
    rows = [[escape(what), escape(value)] for what, value in facts.items()]
    return table(["condition", "value"], rows, n_text=2) + f"\n\nCommand: {code(shlex.join(e.command))}"


def _versions(environment: Environment) -> str:
    versions = {"Python": environment.python, **environment.versions}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _model(model: ModelResult, slug: str, charts: Mapping[str, str]) -> Iterator[str]:
    name = model.name
    yield f"## {escape(name)}"
    yield (
        f"{escape(model.model_id)}: {model.n_layers} layers of {model.hidden_size}, {escape(model.pooling)} pooling, "
        f"weights {escape(model.weights_sha256[:12])}. "
        + ("Random weights: the speed is real. " if model.is_standin else "")
        + f"Baseline: {escape(model.baseline)}."
    )
    yield from sections.subjects(model)
    pictures = [
        *_pictures(charts, f"Latency of one sentence by its length, {name}", f"latency-{slug}"),
        *_pictures(charts, f"Throughput by batch, {name}", f"throughput-{slug}"),
    ]
    yield from sections.texts_in(model)
    yield from sections.ids_in(model, pictures)
    yield from sections.cold_start(model)
    yield from sections.under_load(model, list(_pictures(charts, f"Latency under load, {name}", f"load-{slug}")))
    yield from many_callers(model)
    yield from fidelity_section(model)


def _pictures(charts: Mapping[str, str], title: str, name: str) -> Iterator[str]:
    if name in charts:
        yield f"![{escape(title)}]({charts[name]})"
