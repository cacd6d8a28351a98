from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from mexma_export.bundle.comparison import certify, compare_bundle
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.checkpoint.standin import write_standin
from mexma_export.corpus.corpus import Corpus
from mexma_export.parity.figures import InvarianceFigures
from mexma_export.parity.thresholds import check_invariance
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.errors import BundleError, EngineUnavailableError
from mexma_runtime.types import Precision

BAD_INVARIANCE = InvarianceFigures(cosine_min=0.5, max_abs_difference=1.0)
CORPUS = Corpus(name="test", texts=("one", "two words", "a third sentence"), languages=("en", "en", "x"))


def ignore_what(what: str, done: int, total: int) -> None:
    pass


def test_published_engines_are_compared_with_their_checkpoint(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    source = resolve_source(str(tiny_checkpoint))
    verdicts, reference = compare_bundle(
        tiny_bundle, source, corpus=CORPUS, precisions=[Precision.FP32], progress=ignore_what
    )
    assert [verdict.engine.name for verdict in verdicts] == ["fused.fp32", "portable.fp32"]
    assert [verdict.shortfalls for verdict in verdicts] == [[], []]
    assert reference.corpus is CORPUS
    assert [*verdicts[0].breakdown.by_language] == ["en", "x"]


def test_certificates_are_kept_one_for_each_place_that_judged(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    source, before = resolve_source(str(tiny_checkpoint)), Bundle.open(folder).manifest.engines
    verdicts, _ = compare_bundle(folder, source, corpus=CORPUS, precisions=None, progress=ignore_what)
    fp16 = verdicts[0]
    on_gpu = dataclasses.replace(fp16.certificate, provider="CUDAExecutionProvider", processor="H200", certified=True)
    elsewhere = dataclasses.replace(fp16, engine=dataclasses.replace(fp16.engine, certificates=[on_gpu]))
    bad = dataclasses.replace(verdicts[1], shortfalls=check_invariance(BAD_INVARIANCE, Precision.FP32))

    assert certify(folder, [fp16, elsewhere, bad]) == (["fused.fp16"], ())

    after = {engine.name: engine for engine in Bundle.open(folder, verify=True).manifest.engines}
    assert after["fused.fp16"].certificates == [*before[0].certificates, on_gpu]
    assert [after[e.name] for e in before[1:]] == before[1:]
    assert certify(folder, [fp16]) == (["fused.fp16"], ())
    assert Bundle.open(folder).manifest.engines[0].certificates == [on_gpu, fp16.certificate]
    other = dataclasses.replace(fp16, engine=dataclasses.replace(fp16.engine, file="model.other.onnx"))
    with pytest.raises(BundleError, match=r"fused\.fp16 changed while it was judged"):
        certify(folder, [other])


def test_another_checkpoint_is_no_reference(tiny_bundle: Path, tmp_path: Path) -> None:
    other = resolve_source(str(write_standin("tiny", tmp_path / "other", seed=1)))
    with pytest.raises(
        BundleError, match=r"bundle of tiny, .* \(other\) differs: weights [0-9a-f]{64} there, [0-9a-f]{64} here"
    ):
        compare_bundle(tiny_bundle, other, corpus=CORPUS, precisions=None, progress=ignore_what)


def test_a_precision_that_the_bundle_lacks_is_said(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    source = resolve_source(str(tiny_checkpoint))
    with pytest.raises(EngineUnavailableError, match=r"no engine of int8 that runs on cpu; it has fused.fp16, fus"):
        compare_bundle(tiny_bundle, source, corpus=CORPUS, precisions=[Precision.INT8], progress=ignore_what)


def test_another_tokenizer_is_no_reference(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """One more byte at the end of the file: the same weights, perhaps other ids."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b"\n")
    source = resolve_source(str(folder))
    with pytest.raises(BundleError, match=r"differs: tokenizer tokenizer\.\w{16}\.json there, .* by --tokenizer"):
        compare_bundle(tiny_bundle, source, corpus=CORPUS, precisions=None, progress=ignore_what)
