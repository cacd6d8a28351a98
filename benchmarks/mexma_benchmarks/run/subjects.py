"""What is measured: the engines of a bundle, PyTorch's ways to run the same checkpoint, and peers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mexma_benchmarks.result.result import Role
from mexma_runtime.backends import runnable_engines, runners
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.errors import UsageError

EVERYTHING = frozenset({"ids", "texts", "cold start", "load", "clients", "fidelity"})
TEXTS = frozenset({"texts", "load"})
GRAPH_LENGTH = 32
"""Tokens of the sentence that PyTorch has a CUDA graph for."""
FLASH_ATTENTION = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""Attention that transformers takes from another package -> its module."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One way to embed text, and what of it is measured."""

    name: str
    role: Role
    adapter: str
    """Module in `adapters/`."""
    options: dict[str, Any] = field(default_factory=dict)
    measured: frozenset[str] = EVERYTHING
    python: Path | None = None
    """Interpreter of its environment; None: this one."""
    runtime: Path | None = None
    """Folder with a mexma_runtime to use in the place of this one."""
    environment: str = ""
    """Text that pins its environment: a converted checkpoint belongs to it."""
    converts: bool = False
    """Whether the adapter converts the checkpoint first."""
    calibrates: bool = False
    """Whether it reads the calibration text then."""
    unavailable: str | None = None
    """Why it cannot be measured, where that is known already."""


def engine_subjects(bundle: Bundle, device: str) -> list[Subject]:
    """Every engine of the bundle on every backend that runs it on `device`; the one chosen by default first.

    Last those that nothing here runs.
    """
    found = runnable_engines(bundle, device)
    n_backends = len({backend for backend, _ in found})
    runnable = {engine.name for _, engine in found}
    idle = [
        Subject(
            name=f"mexma {engine.name}",
            role="engine",
            adapter="mexma",
            options={"engine": engine.name, "precision": engine.precision},
            unavailable=f"no backend that is installed runs it here on {device}: it is for "
            + (" or ".join(runners(engine)) or "none"),
        )
        for engine in bundle.manifest.engines
        if engine.name not in runnable
    ]
    runs = [
        Subject(
            name=f"mexma {engine.name}" + (f" on {backend}" if n_backends > 1 else ""),
            role="engine",
            adapter="mexma",
            options={"engine": engine.name, "precision": engine.precision, "backend": backend},
        )
        for backend, engine in found
    ]
    return [*runs, *idle]


def with_runtime(subjects: Sequence[Subject], checkout: Path) -> list[Subject]:
    """Our engines once more, with the runtime of another checkout of this project; UsageError where there is none."""
    runtime = checkout / "runtime"
    if not (runtime / "mexma_runtime" / "__init__.py").is_file():
        raise UsageError(f"--against {checkout}: expected a checkout of this project, with runtime/mexma_runtime")
    return [
        replace(subject, name=f"{subject.name}, runtime of {checkout.resolve().name}", runtime=runtime.resolve())
        for subject in subjects
        if not subject.unavailable
    ]


def baseline_subjects(device: str) -> list[Subject]:
    """PyTorch; the first one is what the others are held against."""

    def pytorch(name: str, measured: frozenset[str] = EVERYTHING, **options: Any) -> Subject:
        return Subject(name=f"PyTorch {name}", role="baseline", adapter="pytorch", options=options, measured=measured)

    def packed(name: str, measured: frozenset[str] = EVERYTHING, **options: Any) -> Subject:
        return Subject(
            name=f"PyTorch fp16, {name}", role="baseline", adapter="pytorch_packed", options=options, measured=measured
        )

    if device == "cpu":
        return [pytorch("fp32", dtype="fp32"), pytorch("fp32, sorted", TEXTS, dtype="fp32", is_sorted=True)]
    return [
        pytorch("fp16", dtype="fp16"),
        pytorch("fp16, sorted", TEXTS, dtype="fp16", is_sorted=True),
        pytorch("fp16, compiled", dtype="fp16", is_sorted=True, compile=True),
        pytorch("fp16, unpadded", dtype="fp16", is_sorted=True, unpadded=True),
        pytorch("bf16", dtype="bf16", is_sorted=True),
        pytorch("fp32", dtype="fp32", is_sorted=True),
        packed("packed"),
        packed("packed, graph", frozenset({"ids"}), graph_length=GRAPH_LENGTH),
    ]


def flash_subjects(device: str) -> list[Subject]:
    """sentence-transformers in fp16 with the kernels of flash-attn, on a GPU."""
    if device == "cpu":
        return []
    found = []
    for attention, module in FLASH_ATTENTION.items():
        missing = [name for name in ("sentence_transformers", module) if find_spec(name) is None]
        found.append(
            Subject(
                name=f"sentence-transformers fp16, {attention}",
                role="peer",
                adapter="sbert",
                options={"backend": "torch", "int8": False, "attention": attention, "dtype": "fp16"},
                unavailable=f"not installed: {', '.join(missing)}" if missing else None,
            )
        )
    return found


def server_subjects(urls: list[str], model: str | None) -> list[Subject]:
    """Servers that run already; UsageError for what is not a URL."""
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"--url {url}: expected http://HOST:PORT/v1/embeddings (OpenAI) or .../embed (TEI)")
    return [
        Subject(
            name=url,
            role="peer",
            adapter="http_server",
            options={"url": url} | ({"model": model} if model else {}),
            measured=EVERYTHING - {"ids", "cold start", "clients"},
        )
        for url in urls
    ]
