"""The steps on vectors: against PyTorch in fp32 on the same device, and of one sentence among different batch-mates."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from mexma_benchmarks.result.checks import Check, at_least, not_measured
from mexma_benchmarks.gpu_check.pytorch import PyTorchProcess, task_for
from mexma_benchmarks.gpu_check.run import Record
from mexma_benchmarks.gpu_check.setup import Setup
from mexma_benchmarks.gpu_check.work import Work, drawn_ids
from mexma_benchmarks.run.models import MINILM_PACKAGE, minilm_source
from mexma_benchmarks.run.workload import thinned
from mexma_export.bundle.pipeline import export
from mexma_export.bundle.request import ExportRequest
from mexma_export.checkpoint.sources import Source
from mexma_export.corpus.corpus import sample_corpus
from mexma_export.parity.figures import compare, pair_cosines
from mexma_runtime import Encoder
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.types import Dialect, Precision

MIN_COSINE = 0.9999
MIN_COSINE_MINILM = 0.9998


def check_parity(setup: Setup, record: Record) -> None:
    """Rows of least cosines: of the checkpoint, and of MiniLM's trained weights where they are installed."""
    _against_pytorch(setup, record, setup.source, setup.bundle, least=MIN_COSINE)
    if find_spec(MINILM_PACKAGE.replace("-", "_")) is None:
        reason = f"{MINILM_PACKAGE} is not installed"
        record.checks.append(not_measured("MiniLM, trained weights: least cosine to PyTorch", reason, is_excused=True))
        return
    source, folder = minilm_source(), setup.out / "bundles" / "minilm"
    request = ExportRequest(
        out=folder,
        precisions=(Precision(setup.precision),),
        dialects=(Dialect.FUSED, Dialect.PACKED) if setup.is_cuda else (Dialect.FUSED,),
        check_parity=False,
    )
    export(source, request)
    _against_pytorch(setup, record, source, Bundle.open(folder), least=MIN_COSINE_MINILM)


def check_invariance(setup: Setup, record: Record) -> None:
    """Each of some sentences alone, among each other, and in one large batch: the least cosine between any two ways."""
    sizes, encoder = setup.sizes, setup.encoder
    ragged = drawn_ids(sizes.n_batch_mates, setup.bundle.manifest.model.vocab_size)
    rows = np.linspace(0, len(ragged) - 1, sizes.n_alone).round().astype(np.int64)
    few = ragged.take(rows)
    alone = np.concatenate([encoder.encode_ids(few.part(row, row + 1)) for row in range(len(few))])
    together, among_many = encoder.encode_ids(few), encoder.encode_ids(ragged)[rows]
    cosines = {
        "alone_among_few": pair_cosines(alone, together),
        "alone_among_many": pair_cosines(alone, among_many),
        "few_among_many": pair_cosines(together, among_many),
    }
    record.samples |= {name: values.tolist() for name, values in cosines.items()}
    record.checks.append(
        Check(
            what=f"one sentence alone, among {len(few)} and among {len(ragged):,}: least cosine",
            bar=at_least(MIN_COSINE),
            measured=min(float(values.min()) for values in cosines.values()),
            note=f"{ragged.ids.size:,} tokens, up to {encoder.info.max_batch_tokens:,} in a batch",
        )
    )


def _against_pytorch(setup: Setup, record: Record, source: Source, bundle: Bundle, *, least: float) -> None:
    manifest, device = bundle.manifest, setup.device
    dialects = (Dialect.PACKED, Dialect.FUSED) if setup.is_cuda else (Dialect.FUSED,)
    task = task_for(source, manifest, device=device, n_threads=setup.n_threads, options={"dtype": "fp32"})
    with PyTorchProcess(task) as pytorch:
        reference = None
        for dialect in dialects:
            with Encoder.from_bundle(bundle, precision=setup.precision, dialect=dialect, device=device) as encoder:
                ragged = encoder.tokenize(thinned(sample_corpus(), setup.sizes.n_judged)).ragged
                vectors, name = encoder.encode_ids(ragged), encoder.info.engine
            if reference is None:
                reference = pytorch.vectors(Work.of(ragged))
            figures = compare(vectors, reference)
            cosines = pair_cosines(vectors, reference)
            record.samples[f"{source.model_id} {name}"] = cosines.tolist()
            record.checks.append(
                Check(
                    what=f"{source.model_id} {name}: least cosine to PyTorch fp32",
                    bar=at_least(least),
                    measured=figures.cosine_min,
                    note=f"{figures.n_sentences} sentences, largest difference {figures.max_abs_difference:.1e}",
                )
            )
