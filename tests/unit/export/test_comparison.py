from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mexma_export.comparison import compare_bundle
from mexma_export.corpus import Corpus
from mexma_export.sources import resolve_source
from mexma_export.standin import write_standin
from mexma_runtime.errors import EngineUnavailableError, UsageError
from mexma_runtime.types import Precision

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


def test_another_checkpoint_is_no_reference(tiny_bundle: Path, tmp_path: Path) -> None:
    other = resolve_source(str(write_standin("tiny", tmp_path / "other", seed=1)))
    with pytest.raises(UsageError, match=r"was made from tiny with weights [0-9a-f]{64}, and other has [0-9a-f]{64}"):
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
    with pytest.raises(
        UsageError, match=r"a tokenizer.json of sha256 [0-9a-f]{64}, and .* has [0-9a-f]{64}: .*--token"
    ):
        compare_bundle(tiny_bundle, source, corpus=CORPUS, precisions=None, progress=ignore_what)
