"""One checkpoint's fp32 engines against PyTorch: fidelity, fixed shapes, real lengths, the wrapping, cold starts."""

from __future__ import annotations

import functools
import gc
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mexma_benchmarks.cold_start import ColdStart, start_encoder, start_pytorch
from mexma_benchmarks.result import ModelResult, Result, Timing
from mexma_benchmarks.timing import rounds
from mexma_benchmarks.workload import describe_lengths, drawn_texts
from mexma_export.checkpoint import Checkpoint, load_checkpoint, weights_sha256
from mexma_export.corpus import Corpus, gate_corpus
from mexma_export.gate import open_pytorch
from mexma_export.parity import compare
from mexma_export.pipeline import ExportPlan, export
from mexma_export.reference import Reference
from mexma_export.sources import Source
from mexma_runtime import Encoder
from mexma_runtime.bundle import Bundle, read_manifest
from mexma_runtime.errors import TruncationWarning, UsageError
from mexma_runtime.manifest import PositionScheme
from mexma_runtime.terminal import Progress, note
from mexma_runtime.types import Pooling, Precision, Ragged

GRID = ((1, 16), (1, 32), (1, 128), (32, 32))
"""Sentences x tokens."""
BATCH = 32
SHORT_TEXT = "Where is the nearest station?"
PYTORCH = "PyTorch fp32"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One checkpoint and where its bundle is, or will be."""

    name: str
    source: Source
    pooling: Pooling | None
    bundle: Path


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much to measure."""

    n_threads: int
    """Of PyTorch and of the engines each."""
    n_rounds: int
    """Of a fixed shape; the wrapping of one text gets ten times as many."""
    n_text_rounds: int
    n_cold_starts: int
    n_texts: int
    corpus: Corpus | None
    """Real text; None: texts of drawn lengths."""


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """Keeps one model's samples round by round and saves them after each workload."""

    model: ModelResult
    save: Callable[[], None]
    report: Progress

    def keep(self, timing: Timing, taken: Iterator[dict[str, float]], n_rounds: int) -> None:
        """Take `n_rounds` rounds, each the ms of every subject, into `timing`."""
        self.model.timings.append(timing)
        what = f"{self.model.name}, {timing.workload}"
        self.report(what, 0, n_rounds)
        for done, taken_ms in enumerate(islice(taken, n_rounds), start=1):
            for subject, ms in taken_ms.items():
                timing.samples_ms.setdefault(subject, []).append(ms)
            self.report(what, done, n_rounds)
        self.save()


def measure(subject: Subject, plan: Plan, result: Result, *, save: Callable[[], None], report: Progress) -> None:
    """Measure one checkpoint and add it to `result`."""
    bundle, checkpoint = _prepare(subject, report)
    load = functools.partial(Encoder.load, bundle.folder, precision=Precision.FP32, n_threads=plan.n_threads)
    with ExitStack() as stack:
        # PyTorch truncates the same texts.
        stack.enter_context(warnings.catch_warnings(action="ignore", category=TruncationWarning))
        pytorch = stack.enter_context(open_pytorch(checkpoint, n_threads=plan.n_threads))
        main = stack.enter_context(load())
        encoders = {main.info.engine: main}
        for engine in bundle.manifest.engines:
            if engine.precision is Precision.FP32 and engine.name not in encoders:
                encoders[engine.name] = stack.enter_context(load(dialect=engine.dialect))
        entry, versions = bundle.manifest.model, pytorch.versions
        model = ModelResult(
            name=subject.name,
            model_id=entry.id,
            weights_sha256=entry.weights_sha256,
            n_layers=entry.n_layers,
            hidden_size=entry.hidden_size,
            pooling=bundle.manifest.pooling_mode,
            reference=f"transformers {versions.transformers} on torch {versions.torch}, fp32, {pytorch.attention}",
        )
        result.models.append(model)
        recorder = Recorder(model=model, save=save, report=report)
        _compare(recorder, plan, pytorch, encoders, prompt=checkpoint.settings.default_prompt)
        _time_shapes(recorder, plan, pytorch, encoders, vocab_size=entry.vocab_size)
        _time_texts(recorder, plan, pytorch, main, prompt=checkpoint.settings.default_prompt)
    del pytorch, encoders, main
    gc.collect()
    with load() as encoder:
        _time_wrapping(recorder, plan, encoder, bundle)
    if plan.n_cold_starts:
        _time_cold_starts(recorder, plan, bundle, checkpoint)


def _prepare(subject: Subject, report: Progress) -> tuple[Bundle, Checkpoint]:
    """The bundle, exported where there is none yet, and its checkpoint."""
    manifest = read_manifest(subject.bundle)
    if manifest is None:
        plan = ExportPlan(out=subject.bundle, precisions=(Precision.FP32,), pooling=subject.pooling, check_parity=False)
        manifest = export(subject.source, plan, progress=report).manifest
    else:
        note(f"measuring the bundle that is in {subject.bundle} already; remove it to have it exported anew")
    if subject.pooling not in (None, manifest.pooling_mode):
        raise UsageError(
            f"{subject.bundle} pools {manifest.pooling_mode}, not {subject.pooling}: name another --bundle"
        )
    checkpoint = load_checkpoint(subject.source, pooling=manifest.pooling_mode)
    if (digest := weights_sha256(checkpoint)) != manifest.model.weights_sha256:
        raise UsageError(
            f"{subject.bundle} was made from weights {manifest.model.weights_sha256}, and {subject.source.model_id} "
            f"has {digest}: remove the bundle, or name another --bundle"
        )
    return Bundle.open(subject.bundle), checkpoint


def _compare(
    recorder: Recorder, plan: Plan, pytorch: Reference, encoders: Mapping[str, Encoder], *, prompt: str
) -> None:
    """The fidelity of each engine."""
    corpus = plan.corpus or gate_corpus()
    what = functools.partial(recorder.report, f"{recorder.model.name}, reference vectors")
    expected = pytorch.encode(
        [prompt + text for text in corpus.texts], batch_size=8, sort_by_length=True, progress=what
    )
    recorder.model.fidelity_corpus = f"{corpus.name}, {len(corpus.texts)} sentences"
    for engine, encoder in encoders.items():
        recorder.model.fidelity[engine] = compare(encoder.encode(corpus.texts), expected)
    recorder.save()


def _time_shapes(
    recorder: Recorder, plan: Plan, pytorch: Reference, encoders: Mapping[str, Encoder], *, vocab_size: int
) -> None:
    """Ids in, fixed shapes: every fp32 engine."""
    random = np.random.default_rng(0)
    for n, length in GRID:
        ids = Ragged.from_sequences(random.integers(5, vocab_size, (n, length)).tolist())
        calls: dict[str, Callable[[], object]] = {PYTORCH: functools.partial(pytorch.encode_ids, ids, batch_size=n)}
        calls |= {engine: functools.partial(encoder.encode_ids, ids) for engine, encoder in encoders.items()}
        workload = f"ids in, {n} x {length} tokens"
        timing = Timing(workload=workload, n_sentences=n, n_tokens=n * length, baseline=PYTORCH)
        recorder.keep(timing, rounds(calls), plan.n_rounds)


def _time_texts(recorder: Recorder, plan: Plan, pytorch: Reference, encoder: Encoder, *, prompt: str) -> None:
    """Texts in, real lengths: the engine that is chosen by default."""
    texts = list(plan.corpus.texts) if plan.corpus else drawn_texts(encoder, plan.n_texts)
    lengths = encoder.tokenize(texts).ragged.lengths
    theirs = [prompt + text for text in texts]
    arrival = f"{PYTORCH}, batches of {BATCH} as they come"
    calls = {
        arrival: lambda: pytorch.encode(theirs, batch_size=BATCH),
        f"{PYTORCH}, batches of {BATCH} sorted by length": lambda: pytorch.encode(
            theirs, batch_size=BATCH, sort_by_length=True
        ),
        f"encode() with {encoder.info.engine}": lambda: encoder.encode(texts),
    }
    workload = f"texts in, {len(texts)} {'sentences' if plan.corpus else 'drawn lengths'}, {describe_lengths(lengths)}"
    timing = Timing(workload=workload, n_sentences=len(texts), n_tokens=int(lengths.sum()), baseline=arrival)
    # A round is long, and its many batches average out what a warm-up is for.
    recorder.keep(timing, rounds(calls, warmups=0), plan.n_text_rounds)


def _time_wrapping(recorder: Recorder, plan: Plan, encoder: Encoder, bundle: Bundle) -> None:
    """What `encode` of one short text costs beyond the engine's own run on the same ids."""
    tokens = encoder.tokenize([SHORT_TEXT]).ragged
    own = "the engine's own run"
    calls = {own: _own_run(encoder, bundle, tokens), "encode()": lambda: encoder.encode(SHORT_TEXT)}
    workload = f"one text of {tokens.ids.size} tokens, {encoder.info.engine}"
    timing = Timing(workload=workload, n_sentences=1, n_tokens=tokens.ids.size, baseline=own)
    recorder.keep(timing, rounds(calls, warmups=3), 10 * plan.n_rounds)


def _own_run(encoder: Encoder, bundle: Bundle, tokens: Ragged) -> Callable[[], object]:
    """onnxruntime alone, in the encoder's own session: two sessions of one file differ by more than the wrapping."""
    inside: Any = encoder
    session = inside._backend._session
    text = bundle.manifest.text
    ids = tokens.ids[np.newaxis]
    first = text.padding_id + 1 if text.position_scheme is PositionScheme.AFTER_PADDING else 0
    feeds = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(first, first + ids.size, dtype=np.int32)[np.newaxis],
    }
    return lambda: session.run(None, feeds)


def _time_cold_starts(recorder: Recorder, plan: Plan, bundle: Bundle, checkpoint: Checkpoint) -> None:
    """Process start to first vector, the files in memory already."""
    folder, tokenizer_folder = checkpoint.source.folder, checkpoint.source.tokenizer.parent
    starts: dict[str, Callable[[], ColdStart]] = {
        PYTORCH: lambda: start_pytorch(folder, tokenizer_folder, plan.n_threads),
        "mexma-runtime": lambda: start_encoder(bundle.folder, plan.n_threads),
    }
    peaks = recorder.model.peak_rss_bytes

    def taken() -> Iterator[dict[str, float]]:
        for start in starts.values():  # brings the files into memory
            start()
        while True:
            started = {who: start() for who, start in starts.items()}
            for who, one in started.items():
                peaks.setdefault(who, []).append(one.peak_rss_bytes)
            yield {who: one.ms for who, one in started.items()}

    timing = Timing(workload="cold start, process start to first vector", n_sentences=1, n_tokens=0, baseline=PYTORCH)
    recorder.keep(timing, taken(), plan.n_cold_starts)
