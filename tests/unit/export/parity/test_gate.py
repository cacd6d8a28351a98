from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mexma_export.bundle.pipeline import export
from mexma_export.bundle.request import ExportRequest
from mexma_export.checkpoint.checkpoint import Checkpoint, load_checkpoint
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.corpus.corpus import Corpus
from mexma_export.parity.figures import compare
from mexma_export.parity.gate import (
    UNCERTIFIED_FP16,
    UNCERTIFIED_OWN,
    ReferenceVectors,
    graph_reference,
    judge,
    pytorch_reference,
    reference_for,
)
from mexma_export.parity.mining import Bitext, MiningCorpus
from mexma_export.parity.sts import StsPairs
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.errors import ParityError, UsageError
from mexma_runtime.types import Precision

CORPUS = Corpus(name="test", texts=("one", "two words", "a third sentence, longer than the others", "vier", "", "six"))


def ignore(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(resolve_source(str(tiny_checkpoint)))


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> ReferenceVectors:
    return pytorch_reference(checkpoint, CORPUS, progress=ignore)


def engine(bundle: Bundle, name: str) -> EngineEntry:
    return next(entry for entry in bundle.manifest.engines if entry.name == name)


@pytest.mark.parametrize("name", ["fused.fp32", "portable.fp32", "fused.fp16", "portable.fp16"])
def test_a_good_engine_is_certified(bundle: Bundle, reference: ReferenceVectors, name: str) -> None:
    calls: list[tuple[int, int]] = []
    verdict = judge(bundle, engine(bundle, name), reference, progress=lambda done, total: calls.append((done, total)))
    assert verdict.shortfalls == []
    assert verdict.engine == replace(engine(bundle, name), certificates=[verdict.certificate])
    again = 3 * len(CORPUS.texts)  # alone, in one call, in another order
    assert calls == [(i + 1, 6 + again) for i in range(6 + again)]
    certificate = verdict.certificate
    assert (certificate.corpus, certificate.corpus_sha256) == ("test", CORPUS.sha256)
    assert certificate.reference.startswith("transformers ")
    assert certificate.backend.startswith("onnxruntime ")
    assert certificate.provider == "CPUExecutionProvider"
    assert certificate.processor
    assert certificate.figures["cosine_min"] == verdict.figures.cosine_min
    assert certificate.figures["batch_invariance_cosine_min"] == verdict.invariance.worst.cosine_min >= 0.999999
    assert certificate.figures["batch_invariance_mixed_cosine_min"] == verdict.invariance.mixed.cosine_min
    assert sum(part.n_sentences for part in verdict.breakdown.by_length.values()) == 6
    assert (verdict.mining, verdict.sts, verdict.breakdown.by_language) == (None, None, {})
    is_fp16 = name.endswith("fp16")
    assert (certificate.certified, certificate.note) == (not is_fp16, UNCERTIFIED_FP16 if is_fp16 else None)


def test_an_engine_of_other_weights_is_found_out(bundle: Bundle, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The query and key of one layer are swapped."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))
    tensors = load_file(folder / "model.safetensors")
    query, key = (f"encoder.layer.1.attention.self.{part}.weight" for part in ("query", "key"))
    tensors[query], tensors[key] = tensors[key], tensors[query]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    other = pytorch_reference(load_checkpoint(resolve_source(str(folder))), CORPUS, progress=ignore)
    for name in ("fused.fp32", "portable.fp16"):
        verdict = judge(bundle, engine(bundle, name), other, progress=ignore)
        assert "cosine_min" in {shortfall.metric for shortfall in verdict.shortfalls}
        assert verdict.breakdown.worst[0].cosine == verdict.figures.cosine_min


def test_vectors_that_cannot_be_compared_name_the_engine(bundle: Bundle, reference: ReferenceVectors) -> None:
    for flaw, vectors in (("NaN", reference.vectors * np.nan), ("shape", reference.vectors[:, :-1])):
        with pytest.raises(ParityError, match=rf"^fused.fp32: .*{flaw}"):
            judge(bundle, engine(bundle, "fused.fp32"), replace(reference, vectors=vectors), progress=ignore)


def test_without_pytorch_engines_are_held_against_our_own_graph(bundle: Bundle, checkpoint: Checkpoint) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        own = reference_for(checkpoint, bundle, progress=ignore)
    assert own.description.startswith("our own portable fp32 graph on onnxruntime ")
    assert not own.is_pytorch
    verdict = judge(bundle, engine(bundle, "fused.fp32"), own, progress=ignore)
    assert verdict.shortfalls == []
    assert (verdict.certificate.certified, verdict.certificate.note) == (False, UNCERTIFIED_OWN)


def test_our_own_graph_is_not_the_reference_where_pytorch_is_there(
    bundle: Bundle, checkpoint: Checkpoint, reference: ReferenceVectors
) -> None:
    found = reference_for(checkpoint, bundle, progress=ignore)
    assert found.is_pytorch
    assert found.description == reference.description
    own = graph_reference(bundle, found.corpus, progress=ignore)
    assert compare(own.vectors, found.vectors).cosine_min > 0.999999
    assert not np.array_equal(own.vectors, found.vectors)


def test_without_pytorch_and_fp32_there_is_nothing_to_judge_by(bundle: Bundle) -> None:
    engines = [entry for entry in bundle.manifest.engines if entry.name != "portable.fp32"]
    poor = Bundle(folder=bundle.folder, manifest=replace(bundle.manifest, engines=engines))
    with pytest.raises(UsageError, match=r"nothing to judge by: .*mexma-runtime\[reference\].*--precision fp32"):
        graph_reference(poor, CORPUS, progress=ignore)


def test_the_reference_reads_the_default_prompt(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """As the runtime does, and sentence-transformers."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))
    prompts = '{"prompts": {"query": "query: "}, "default_prompt_name": "query"}'
    (folder / "config_sentence_transformers.json").write_text(prompts, encoding="utf-8")
    source = resolve_source(str(folder))
    prompted = pytorch_reference(load_checkpoint(source), CORPUS, progress=ignore)
    out = tmp_path / "bundle"
    export(source, ExportRequest(out=out, precisions=(Precision.FP32,), check_parity=False))
    bundle = Bundle.open(out)
    assert judge(bundle, engine(bundle, "fused.fp32"), prompted, progress=ignore).shortfalls == []
    plain = pytorch_reference(load_checkpoint(resolve_source(str(tiny_checkpoint))), CORPUS, progress=ignore)
    with pytest.raises(ParityError, match=r"fused.fp32: tokens differ from those of transformers .* of the text 'one'"):
        judge(bundle, engine(bundle, "fused.fp32"), plain, progress=ignore)


def test_tokens_that_differ_in_no_text_of_the_corpus_are_found_all_the_same(
    bundle: Bundle, checkpoint: Checkpoint, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The tokenizer that a checkpoint was exported with, and another one beside the same weights."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))
    content = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(content.replace('"WhitespaceSplit"', '"Whitespace"'), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    other = pytorch_reference(load_checkpoint(resolve_source(str(folder))), CORPUS, progress=ignore)
    with pytest.raises(
        ParityError, match=r"tokens differ .* from token \d+ on it has .* and tokenizer.json \[.* or sentence_bert"
    ):
        judge(bundle, engine(bundle, "fused.fp32"), other, progress=ignore)


def test_an_engine_does_at_tasks_what_the_reference_does(bundle: Bundle, checkpoint: Checkpoint) -> None:
    """fp32 vectors differ by rounding alone, so that counts and ranks are the reference's."""
    texts = CORPUS.texts
    mining = MiningCorpus(name="m", bitexts=(Bitext(name="a-b", source=texts, target=tuple(f"{t}!" for t in texts)),))
    sts = StsPairs(name="s", scores=tuple(map(float, range(5))), first=texts[:-1], second=texts[1:])
    calls: list[tuple[int, int]] = []
    reference = pytorch_reference(
        checkpoint, CORPUS, mining=mining, sts=sts, progress=lambda done, total: calls.append((done, total))
    )
    assert calls[-1] == (6 + 12 + 10, 6 + 12 + 10)
    verdict = judge(bundle, engine(bundle, "portable.fp32"), reference, progress=ignore)
    assert reference.mining_errors is not None
    assert verdict.mining is not None
    assert verdict.sts is not None
    assert verdict.mining.rows[0].reference_error_rate == reference.mining_errors[0] / 6
    assert verdict.mining.mean.difference == 0
    assert verdict.sts.n_pairs == 5
    assert verdict.sts.reference == reference.sts_correlation
    assert verdict.sts.difference == pytest.approx(0, abs=1e-12)
