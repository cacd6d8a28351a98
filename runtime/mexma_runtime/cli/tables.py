"""What `mexma info` and `mexma doctor` print: lines for people, JSON for scripts."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from statistics import median

import typer

from mexma_runtime.backends import Tuned, runners
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.companions import MODULES
from mexma_runtime.bundle.manifest import EngineEntry, ProductMode
from mexma_runtime.cli.doctor import Diagnosis
from mexma_runtime.terminal import print_json


def show_bundle(bundle: Bundle, *, is_verified: bool, as_json: bool) -> None:
    """The model, its settings and where they came from, and every engine."""
    manifest, model = bundle.manifest, bundle.manifest.model
    if as_json:
        document = {"bundle": str(bundle.folder), "weights_verified": is_verified}
        print_json({**document, "manifest": json.loads(manifest.to_json())})
        return
    revision = f" at {model.revision}" if model.revision else ""
    checked = "sizes and all hashes" if is_verified else "sizes, and all hashes but the weights' (--verify)"
    _print_pairs(
        {
            "bundle": f"{bundle.folder}, {sum(entry.size for entry in manifest.files) / 1e6:,.1f} MB",
            "checked": checked,
            "written by": manifest.writer,
            "model": f"{model.id}{revision}",
            "shape": f"{model.family}, {model.n_layers} layers, {manifest.dim} numbers a vector",
            "most tokens": f"{manifest.text.max_tokens} ({manifest.text.max_tokens_source})",
            "pooling": f"{manifest.pooling.value} ({manifest.pooling.source})",
            "normalised": f"{manifest.normalize.value} ({manifest.normalize.source})",
            "similarity": f"{manifest.similarity.value} ({manifest.similarity.source})",
            "opens in": _openers(bundle),
        }
    )
    for engine in manifest.engines:
        size = sum(manifest.file(name).size for name in (engine.file, *engine.weights))
        needs = ", ".join(f"{name} >= {version}" for name, version in engine.requires.items())
        typer.echo(f"\nengine {engine.name}")
        _print_pairs(
            {
                "  file": f"{engine.file}, {size / 1e6:,.1f} MB with its weights",
                "  needs": needs or "no backend of this version",
                "  runs on": ", ".join(runners(engine)) or "no backend of this version",
                **({"  quantized": _quantized(engine)} if engine.quantization else {}),
                "  judged": _judged(engine),
                "  space": engine.space,
            }
        )


def show_diagnosis(diagnosis: Diagnosis, *, as_json: bool) -> None:
    """Machine, versions, backends, problems."""
    if as_json:
        print_json(dataclasses.asdict(diagnosis))
        return
    hardware = diagnosis.hardware
    quota = "none" if hardware.cpu_quota is None else f"{hardware.cpu_quota:g} processors"
    memory = (hardware.memory_available_bytes, hardware.memory_total_bytes)
    available, total = ("?" if size is None else f"{size / 1e9:.1f} GB" for size in memory)
    _print_pairs(
        {
            "python": diagnosis.python,
            "system": diagnosis.system,
            "processor": hardware.processor,
            "instructions": " ".join(hardware.instruction_sets) or "none known",
            "allowed": f"{hardware.n_physical_cores} physical cores, {hardware.n_logical_cpus} logical; quota: {quota}",
            "threads": f"{diagnosis.n_threads} unless told otherwise",
            "memory": f"{available} available of {total}",
            **{name: version or "not installed" for name, version in diagnosis.versions.items()},
        }
    )
    typer.echo()
    for backend in diagnosis.backends:
        works = backend.problem or f"works, {backend.version}"
        typer.echo(f"{backend.name} on {backend.device}: {works}")
    for line in diagnosis.gpus:
        typer.echo(line)
    for engine, kernels in diagnosis.attention.items():
        typer.echo(f"attention of {engine}: {kernels}")
    for problem in diagnosis.problems:
        typer.secho(f"problem: {problem}", fg=typer.colors.RED)


def show_tuning(tuned: Tuned, *, as_json: bool) -> None:
    """What was measured, a line a bucket and a line a mean length, and what was chosen by it."""
    tuning = tuned.tuning
    if as_json:
        document = {"engine": tuned.engine.name, "file": str(tuned.file), "attention": tuned.attention}
        print_json({**document, **dataclasses.asdict(tuning)})
        return
    n_runs = len(tuning.samples[0].graph_ms) if tuning.samples else 0
    typer.echo(f"engine {tuned.engine.name}, medians of {n_runs} runs")
    typer.echo("tokens  graph, full  no graph, with as few tokens as it is taken for")
    for sample in tuning.samples:
        typer.echo(f"{sample.n_tokens:>6}  {median(sample.graph_ms):>8.3f} ms  {median(sample.direct_ms):>8.3f} ms")
    if tuning.attention_samples:
        typer.echo("tokens a sentence, on average  efficient attention  flash")
    for kernels in tuning.attention_samples:
        times = f"{median(kernels.efficient_ms):>16.3f} ms  {median(kernels.flash_ms):>8.3f} ms"
        typer.echo(f"{kernels.mean_tokens:>29}  {times}")
    typer.echo(f"graphs are taken for batches of up to {tuning.graph_up_to_tokens} tokens")
    if tuning.attention_samples:
        above = tuning.flash_above_mean_tokens
        typer.echo(f"attention='auto' takes flash above {above} tokens a sentence, on average")
    elif tuned.attention:
        typer.echo(f"attention kernels were not compared: {tuned.attention}")
    typer.echo(f"kept in {tuned.file}")


def _openers(bundle: Bundle) -> str:
    if MODULES in bundle.manifest.companions and (bundle.folder / MODULES).is_file():
        return "Encoder and sentence-transformers"
    return "Encoder alone (`mexma build BUNDLE --target sentence-transformers` adds what sentence-transformers needs)"


def _quantized(engine: EngineEntry) -> str:
    words = f"recipe {engine.recipe or 'unknown'}, activations {engine.activation or 'unknown'}"
    if engine.quantization is None:
        return words
    counts = Counter(product.mode for product in engine.quantization.products)
    products = ", ".join(f"{counts[mode]} {mode}" for mode in ProductMode if counts[mode])
    calibration = f"calibrated on {engine.quantization.n_texts} texts of {engine.quantization.calibration}"
    return f"{words}, weights {engine.quantization.weight_bits} bits; products: {products}; {calibration}"


def _judged(engine: EngineEntry) -> str:
    """A line for each certificate."""
    lines = []
    for certificate in engine.certificates:
        cosine = certificate.figures.get("cosine_min")
        verdict = "certified" if certificate.certified else f"uncertified ({certificate.note})"
        lines.append(
            f"{verdict}, least cosine {cosine} to {certificate.reference} on {certificate.corpus}; "
            f"{certificate.backend} on {certificate.processor}"
        )
    return "\n".join(lines) or "never"


def _print_pairs(pairs: dict[str, str]) -> None:
    width = max(map(len, pairs))
    for name, value in pairs.items():
        typer.echo(f"{name:<{width}}  " + value.replace("\n", "\n" + " " * (width + 2)))
