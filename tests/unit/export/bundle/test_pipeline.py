from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from mexma_export.bundle import request as request_module
from mexma_export.bundle.pipeline import EnginesRefusedError, export
from mexma_export.bundle.request import ExportRequest
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.checkpoint.standin import write_standin
from mexma_export.corpus.sample import load_sample
from mexma_export.quantize.options import QuantizationOptions
from mexma_export.quantize.recipe import load_recipe
from mexma_runtime import Encoder
from mexma_runtime.bundle.bundle import Bundle, sha256_of
from mexma_runtime.bundle.companions import COMPANIONS
from mexma_runtime.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest
from mexma_runtime.errors import BundleError, CheckpointError, UsageError
from mexma_runtime.types import Dialect, Pooling, Precision

TEXTS = ["one sentence", "and another"]
FP32, FP16 = (Precision.FP32,), (Precision.FP16,)


def run(folder: Path, out: Path, precisions: tuple[Precision, ...], **choices: Any) -> Manifest:
    """Export without the gate, which has its own tests."""
    plan = ExportRequest(out=out, precisions=precisions, **{"check_parity": False} | choices)
    return export(resolve_source(str(folder)), plan).manifest


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in folder.iterdir()}


def edit_tensors(folder: Path, edit: Callable[[dict[str, NDArray[Any]]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_bundle_says_what_it_is(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle, verify=True).manifest
    assert [engine.name for engine in manifest.engines] == [
        "fused.fp16",
        "fused.fp32",
        "portable.fp16",
        "portable.fp32",
    ]
    assert manifest.writer.startswith("mexma-runtime ")
    assert (manifest.model.id, manifest.model.revision, manifest.model.family) == ("tiny", None, "xlm-roberta")
    assert (manifest.model.n_layers, manifest.model.n_heads, manifest.model.vocab_size) == (3, 4, 8192)
    assert manifest.dim == 64
    assert (manifest.pooling.value, manifest.pooling.source) == ("cls", "1_Pooling/config.json")
    assert (manifest.text.max_tokens, manifest.text.padding_id) == (512, 1)
    assert set(contents(tiny_bundle)) == {entry.name for entry in manifest.files} | {MANIFEST_NAME, *COMPANIONS}
    for engine in manifest.engines:
        (certificate,) = engine.certificates
        assert certificate.reference.startswith("transformers ")
        assert certificate.certified == (engine.precision is Precision.FP32)
    spaces = {engine.precision: engine.space for engine in manifest.engines}
    assert len(set(spaces.values())) == 2
    assert all(engine.space == spaces[engine.precision] for engine in manifest.engines)


def test_the_weights_of_one_precision_are_one_file(tiny_bundle: Path) -> None:
    weights = {engine.precision: engine.weights for engine in Bundle.open(tiny_bundle).manifest.engines}
    assert len(weights[Precision.FP32]) == len(weights[Precision.FP16]) == 1
    assert all(engine.weights == weights[engine.precision] for engine in Bundle.open(tiny_bundle).manifest.engines)


def test_a_plan_that_exports_nothing_or_what_is_not_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to export"):
        ExportRequest(out=tmp_path, precisions=())
    with pytest.raises(UsageError, match="nothing to export"):
        ExportRequest(out=tmp_path, precisions=FP32, dialects=())
    int8 = QuantizationOptions(recipes=(load_recipe("fast"),), min_cosine=0.99)
    with pytest.raises(UsageError, match="int8 and fp8 go with a recipe and calibration text"):
        ExportRequest(out=tmp_path, precisions=(Precision.INT8,))
    with pytest.raises(UsageError, match="other precisions do without"):
        ExportRequest(out=tmp_path, precisions=FP32, quantization=int8)
    with pytest.raises(UsageError, match="min_cosine is measured by the parity check"):
        ExportRequest(out=tmp_path, precisions=(Precision.INT8,), quantization=int8, check_parity=False)


def test_engines_are_added_to_a_bundle_and_the_old_ones_stay_as_they_are(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    run(tiny_checkpoint, tmp_path, FP32, dialects=(Dialect.PORTABLE,))
    before = contents(tmp_path)
    run(tiny_checkpoint, tmp_path, FP16)
    after = contents(tmp_path)
    assert before.items() - after.items() == {(MANIFEST_NAME, before[MANIFEST_NAME])}
    run(tiny_checkpoint, tmp_path, FP32, dialects=(Dialect.FUSED,))
    everything = contents(tiny_bundle)
    del everything[MANIFEST_NAME]  # which has certificates too
    assert everything.items() <= contents(tmp_path).items()
    assert len(Bundle.open(tmp_path, verify=True).manifest.engines) == 4


def test_certificates_of_other_engines_stay(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    run(tiny_checkpoint, out, FP16)
    engines = Bundle.open(out, verify=True).manifest.engines
    assert {engine.name: len(engine.certificates) for engine in engines} == {
        "fused.fp16": 0,
        "fused.fp32": 1,
        "portable.fp16": 0,
        "portable.fp32": 1,
    }


def test_the_files_of_a_replaced_engine_are_removed(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """The old engines are another writer's: the same graphs with two more bytes."""
    out = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    expected = contents(out)
    manifest = Bundle.open(out).manifest
    renamed = {}
    for entry in manifest.files:
        if "fp16" in entry.name:
            content = (out / entry.name).read_bytes() + b"\x32\x00"  # an empty doc_string at the end
            digest = hashlib.sha256(content).hexdigest()
            name = f"{entry.name.rsplit('.', 2)[0]}.{digest[:16]}.onnx"
            (out / entry.name).rename(out / name)
            (out / name).write_bytes(content)
            renamed[entry.name] = FileEntry(name=name, sha256=digest, size=len(content))
    files = [renamed.get(entry.name, entry) for entry in manifest.files]
    engines = [replace(e, file=renamed[e.file].name if e.file in renamed else e.file) for e in manifest.engines]
    text = replace(manifest, files=files, engines=engines).to_json()
    (out / MANIFEST_NAME).write_text(text, encoding="utf-8")
    Bundle.open(out, verify=True)
    assert len(renamed) == 2
    run(tiny_checkpoint, out, FP16)
    found = contents(out)
    assert found.pop(MANIFEST_NAME) != expected.pop(MANIFEST_NAME)
    assert found == expected


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ("weights", r"weights [0-9a-f]{64} there, [0-9a-f]{64} here"),
        ("tokenizer", r"tokenizer tokenizer\.[0-9a-f]{16}\.json there, tokenizer\.[0-9a-f]{16}\.json here"),
        ("pooling", "pooling cls there, mean here"),
        ("limit", "most tokens 512 there, 128 here; lower case False there, True here"),
        ("prompt", "prompts {} there, {'query': 'query: '} here; default prompt None there, query here"),
    ],
)
def test_another_checkpoint_is_refused_and_the_bundle_untouched(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, change: str, differing: str
) -> None:
    out = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "other"))
    before = contents(out)
    pooling = None
    match change:
        case "weights":
            edit_tensors(folder, lambda tensors: tensors["encoder.layer.0.output.dense.bias"].__setitem__(0, 1))
        case "tokenizer":
            tokenizer = folder / "tokenizer.json"
            tokenizer.write_text(tokenizer.read_text(encoding="utf-8") + " ", encoding="utf-8")
        case "pooling":
            pooling = Pooling.MEAN
        case "limit":
            settings = '{"max_seq_length": 128, "do_lower_case": true}'
            (folder / "sentence_bert_config.json").write_text(settings, encoding="utf-8")
        case "prompt":
            prompts = '{"prompts": {"query": "query: "}, "default_prompt_name": "query"}'
            (folder / "config_sentence_transformers.json").write_text(prompts, encoding="utf-8")
    with pytest.raises(BundleError, match=rf"bundle of tiny, and this checkpoint \(other\) differs: {differing}"):
        run(folder, out, FP32, pooling=pooling)
    assert contents(out) == before


def test_a_checkpoint_that_is_refused_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder, out = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny")), tmp_path / "out"
    edit_tensors(folder, lambda tensors: tensors["embeddings.LayerNorm.bias"].__setitem__(0, 70000))
    with pytest.raises(CheckpointError, match="over fp16's 65504"):
        run(folder, out, (*FP32, *FP16))
    edit_tensors(folder, lambda tensors: tensors["embeddings.LayerNorm.bias"].__setitem__(0, np.nan))
    with pytest.raises(CheckpointError, match="NaN"):
        run(folder, out, FP32)
    edit_tensors(folder, lambda tensors: tensors.pop("embeddings.LayerNorm.bias"))
    with pytest.raises(CheckpointError, match="missing"):
        run(folder, out, FP32)
    assert not out.exists()


def test_an_engine_whose_vectors_are_nothing_is_not_published(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A checkpoint whose last LayerNorm is so small that fp16 rounds it to zero."""
    folder, out = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny")), tmp_path / "out"

    def shrink(tensors: dict[str, NDArray[Any]]) -> None:
        for part in ("weight", "bias"):
            tensors[f"encoder.layer.2.output.LayerNorm.{part}"] *= np.float32(1e-9)

    edit_tensors(folder, shrink)
    plan = ExportRequest(out=out, precisions=(*FP32, *FP16), dialects=(Dialect.FUSED,))
    with pytest.raises(EnginesRefusedError, match=r"fused.fp16: vectors: row 0 is all zeros") as caught:
        export(resolve_source(str(folder)), plan)
    manifest = Bundle.open(out, verify=True).manifest
    assert caught.value.exported.manifest == manifest
    assert [engine.name for engine in manifest.engines] == ["fused.fp32"]
    assert set(contents(out)) == {entry.name for entry in manifest.files} | {MANIFEST_NAME, *COMPANIONS}

    before = contents(out)
    with pytest.raises(EnginesRefusedError):
        export(resolve_source(str(folder)), ExportRequest(out=out, precisions=FP16, dialects=(Dialect.FUSED,)))
    assert contents(out) == before


def test_what_a_user_should_hear_of_the_checkpoint_is_handed_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))
    (folder / "modules.json").unlink()
    plan = ExportRequest(out=tmp_path / "out", precisions=FP32, pooling=Pooling.CLS, check_parity=False)
    exported = export(resolve_source(str(folder)), plan)
    assert exported.verdicts == []
    (warning,) = exported.warnings
    assert "sentence-transformers mean-pools it" in warning
    assert exported.manifest.pooling.source == "asked for (--pooling)"


def test_progress_tells_each_step_and_reaches_its_end(tiny_checkpoint: Path, tmp_path: Path) -> None:
    steps: dict[str, list[tuple[int, int]]] = {}
    plan = ExportRequest(out=tmp_path / "out", precisions=(*FP32, *FP16), check_parity=False)
    export(
        resolve_source(str(tiny_checkpoint)),
        plan,
        progress=lambda what, done, total: steps.setdefault(what, []).append((done, total)),
    )
    assert list(steps) == ["checking the weights", "writing fp32 weights", "writing fp16 weights"]
    for calls in steps.values():
        assert calls == sorted(calls)
        assert calls[-1][0] == calls[-1][1]


def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_module, "find_spec", lambda name: None if name == "openvino" else find_spec(name))


def test_without_openvino_its_int8_engines_are_not_written_and_that_is_said(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless nothing is to be judged; and asked for nothing else, it is refused before the work."""
    without_openvino(monkeypatch)
    recipe = replace(load_recipe("fast"), smoothquant_alphas=(0.5,), clip_ratios=(1.0,))
    texts = tmp_path / "few.txt"
    texts.write_text("\n".join(line.text for line in load_sample()[:100]), encoding="utf-8")
    int8 = QuantizationOptions(recipes=(recipe,), calibration=texts)
    plan = ExportRequest(out=tmp_path / "out", precisions=(Precision.INT8,), quantization=int8)
    exported = export(resolve_source(str(tiny_checkpoint)), plan)
    assert [engine.name for engine in exported.manifest.engines] == ["fused.int8.fast.uint8"]
    (warning,) = exported.warnings
    assert "OpenVINO, which is not installed to judge them: none was written: pip install" in warning
    alone = replace(plan, out=tmp_path / "alone", dialects=(Dialect.PORTABLE,))
    with pytest.raises(UsageError, match="which is not installed to judge them: pip install"):
        export(resolve_source(str(tiny_checkpoint)), alone)
    assert not alone.out.exists()
    unjudged = export(resolve_source(str(tiny_checkpoint)), replace(alone, check_parity=False))
    assert [engine.name for engine in unjudged.manifest.engines] == ["portable.int8.fast.uint8"]
    assert unjudged.warnings == ()


def test_an_unjudged_engine_runs_all_the_same(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = run(tiny_checkpoint, tmp_path / "out", FP32, dialects=(Dialect.PORTABLE,))
    assert [engine.certificates for engine in manifest.engines] == [[]]
    with Encoder.load(tmp_path / "out") as mine, Encoder.load(tiny_bundle, dialect="portable") as theirs:
        assert np.array_equal(mine.encode(TEXTS), theirs.encode(TEXTS))
        assert mine.info.space == theirs.info.space


def test_seeds_give_other_spaces(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = run(write_standin("tiny", tmp_path / "tiny", seed=1), tmp_path / "out", FP32)
    spaces = {engine.space for engine in Bundle.open(tiny_bundle).manifest.engines}
    assert not spaces & {engine.space for engine in manifest.engines}
