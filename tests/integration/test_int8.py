"""int8 engines from checkpoint to vectors, on both backends: what they keep, what is refused, what they need."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from mexma_export.bundle.pipeline import EnginesRefusedError, Exported, export
from mexma_export.bundle.request import ExportRequest
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.checkpoint.standin import write_standin
from mexma_export.corpus.sample import load_sample
from mexma_export.graph.input_quantization import Activation
from mexma_export.parity.figures import compare
from mexma_export.quantize.options import QuantizationOptions
from mexma_export.quantize.recipe import FOR_CPUS, Recipe, Rounding, load_recipe
from mexma_runtime import Encoder
from mexma_runtime.bundle.bundle import Bundle, sha256_of
from mexma_runtime.bundle.companions import COMPANIONS
from mexma_runtime.bundle.manifest import MANIFEST_NAME, EngineEntry, ProductMode
from mexma_runtime.errors import UsageError
from mexma_runtime.hardware import detect_hardware, sums_int8_exactly
from mexma_runtime.types import PADDED_DIALECTS, Dialect, Precision, Vectors

ENGLISH = [line.text for line in load_sample() if line.lang == "en"]
"""Calibration never saw them: tests/unit/export/quantize/test_calibration.py."""
EMULATOR = shutil.which("qemu-x86_64") or ""
WITHOUT_VNNI = ("ONEDNN_MAX_CPU_ISA", "AVX2")
ALL_STATIC = {dialect: {"*": ProductMode.STATIC} for dialect in PADDED_DIALECTS}

pytestmark = pytest.mark.skipif(
    not sums_int8_exactly(detect_hardware().instruction_sets), reason="the processor has no VNNI, as the engines need"
)


def few(shipped: str = "fast", /, **changes: Any) -> Recipe:
    """A shipped recipe that tries two alphas and two clip ratios, to save time; a small FFN takes a larger share."""
    shares: dict[str, Any] = {"smoothquant_alphas": (0.6, 0.8), "clip_ratios": (1.0, 0.7), "split_channel_share": 0.25}
    return dataclasses.replace(load_recipe(shipped), **shares | changes)


def plan(out: Path, *recipes: Recipe, floats: bool = False, check: bool = False, **choices: Any) -> ExportRequest:
    precisions = (Precision.FP32, Precision.INT8) if floats else (Precision.INT8,)
    dialects = choices.pop("dialects", PADDED_DIALECTS)
    int8 = QuantizationOptions(recipes=recipes or (few(),), **choices)
    return ExportRequest(out=out, precisions=precisions, dialects=dialects, quantization=int8, check_parity=check)


def run(folder: Path, planned: ExportRequest) -> Exported:
    return export(resolve_source(str(folder)), planned)


def encode(bundle: Path, texts: list[str], **asked: Any) -> Vectors:
    with Encoder.load(bundle, **asked) as encoder:
        return encoder.encode(texts)


def engines(bundle: Path) -> dict[str, EngineEntry]:
    """By name; all files of the bundle hashed, and none there that it does not list."""
    manifest = Bundle.open(bundle, verify=True).manifest
    assert {path.name for path in bundle.iterdir()} == {file.name for file in manifest.files} | {
        MANIFEST_NAME,
        *COMPANIONS,
    }
    return {engine.name: engine for engine in manifest.engines}


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in folder.iterdir()}


def without_vnni(code: str, folder: Path) -> str:
    """What `code` prints in a process in which oneDNN takes the processor for one without VNNI."""
    imports = "import sys\nfrom mexma_runtime import Encoder\n"
    command = [sys.executable, "-c", f"{imports}folder = sys.argv[1]\n{textwrap.dedent(code)}", str(folder)]
    return subprocess.run(
        command, env=os.environ | dict([WITHOUT_VNNI]), capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture(scope="module")
def int8_bundle(tiny_checkpoint: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_checkpoint` by both recipes, in both dialects."""
    out = tmp_path_factory.mktemp("int8") / "tiny"
    run(tiny_checkpoint, plan(out, few(), few("precise"), calibration=texts))
    return out


def test_engines_are_named_after_their_recipe_and_activations(int8_bundle: Path) -> None:
    found = engines(int8_bundle)
    assert list(found) == [
        "fused.int8.fast.uint8",
        "fused.int8.precise.uint8",
        "portable.int8.fast.uint8",
        "portable.int8.precise.uint8",
    ]
    for name, engine in found.items():
        dialect, _, recipe, activation = name.split(".")
        assert (engine.dialect, engine.recipe, engine.activation) == (dialect, recipe, activation)
        assert engine.file.startswith(f"model.{name}.")
        assert engine.quantization
        assert (engine.quantization.weight_bits, engine.quantization.seed) == (8, 0)
        assert engine.quantization.calibration == "english.txt"
        assert engine.quantization.n_tokens > 1000
        assert [product.name for product in engine.quantization.products][:2] == [
            "layer.0.attention.qkv",
            "layer.0.attention.output",
        ]
        for product in engine.quantization.products:
            assert 0 < product.error < 0.01
            assert (product.scale is None) == (product.mode is not ProductMode.STATIC)
            assert (product.zero_point is None) == (product.mode is ProductMode.GROUP)
        has_scale_groups = engine.quantization.has_scale_groups
        assert has_scale_groups == (name == "portable.int8.precise.uint8")
        assert engine.quantization.group_size == (64 if has_scale_groups else None)
        libraries = (
            {"openvino"} if has_scale_groups else {"onnxruntime"} if dialect == "fused" else {"onnxruntime", "openvino"}
        )
        assert engine.requires.keys() == libraries
    assert len({engine.space for engine in found.values()}) == 4


def test_weights_are_shared_between_dialects_and_tables_between_recipes(int8_bundle: Path) -> None:
    found = engines(int8_bundle)
    files = {(e.dialect, e.recipe): e.weights for e in found.values()}
    for recipe in ("fast", "precise"):
        assert files[Dialect.FUSED, recipe] == files[Dialect.PORTABLE, recipe]
    shared = set(files[Dialect.FUSED, "fast"]) & set(files[Dialect.FUSED, "precise"])
    assert len(shared) == 1
    manifest = Bundle.open(int8_bundle).manifest
    n_rows, n_positions, hidden = manifest.model.vocab_size, 514, manifest.model.hidden_size
    size = n_rows * (hidden + 4) + n_positions * hidden * 4
    assert size <= manifest.file(shared.pop()).size < size + 3 * 4096
    assert len([entry for entry in manifest.files if entry.name.startswith("weights.")]) == 3


def test_portable_graphs_are_standard_onnx_over_external_weights(int8_bundle: Path) -> None:
    for engine in engines(int8_bundle).values():
        path = int8_bundle / engine.file
        model = onnx.load(path, load_external_data=False)
        assert path.stat().st_size < 100_000
        if engine.dialect is Dialect.PORTABLE:
            onnx.checker.check_model(path, full_check=True)
            assert {node.domain for node in model.graph.node} == {""}
        used = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
        assert len(used) == 1 + 3 * 6


@pytest.mark.parametrize("recipe", ["fast", "precise"])
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_vectors_are_close_and_the_same_among_any_batch_mates(
    int8_bundle: Path, tiny_bundle: Path, backend: str, recipe: str
) -> None:
    expected = encode(tiny_bundle, ENGLISH)
    with Encoder.load(int8_bundle, recipe=recipe, backend=backend) as encoder:
        assert encoder.info.backend == backend
        together = encoder.encode(ENGLISH)
        alone = np.concatenate([encoder.encode([text]) for text in ENGLISH[:12]])
        among_others = encoder.encode(ENGLISH[:12] * 4 + ["", "word " * 200])[:12]
    assert compare(together, expected).cosine_min > 0.999
    for other in (alone, among_others):
        assert compare(other, together[:12]).cosine_min >= 0.999999


def test_the_same_seed_gives_the_same_bytes(
    tiny_checkpoint: Path, int8_bundle: Path, texts: Path, tmp_path: Path
) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    run(tiny_checkpoint, plan(same, few(), few("precise"), calibration=texts))
    assert contents(same) == contents(int8_bundle)
    run(tiny_checkpoint, plan(other, few(), calibration=texts, seed=1))
    assert not set(contents(other)) & {engine.file for engine in engines(int8_bundle).values()}


def test_int8_joins_the_engines_that_are_there(
    tiny_checkpoint: Path, tiny_bundle: Path, int8_bundle: Path, texts: Path, tmp_path: Path
) -> None:
    """And each recipe by itself makes what both together do."""
    out = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    before = engines(out)
    run(tiny_checkpoint, plan(out, few(), calibration=texts))
    run(tiny_checkpoint, plan(out, few("precise"), calibration=texts))
    after = engines(out)
    assert after == before | engines(int8_bundle)
    assert np.array_equal(encode(out, ENGLISH[:3]), encode(tiny_bundle, ENGLISH[:3]))


@pytest.fixture(scope="module")
def minilm_bundle(minilm_folder: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 in fp32 and by both recipes."""
    out = tmp_path_factory.mktemp("int8") / "minilm"
    precise = few("precise", smoothquant_alphas=(0.6,))
    run(minilm_folder, plan(out, few(), precise, floats=True, calibration=texts))
    return out


@pytest.mark.parametrize(
    ("backend", "recipe", "least"),
    [
        ("openvino", "fast", 0.999),
        ("openvino", "precise", 0.999),
        ("onnxruntime", "fast", 0.9975),
        ("onnxruntime", "precise", 0.999),
    ],
)
def test_trained_weights_keep_their_vectors(minilm_bundle: Path, backend: str, recipe: str, least: float) -> None:
    expected = encode(minilm_bundle, ENGLISH, precision="fp32")
    found = encode(minilm_bundle, ENGLISH, recipe=recipe, backend=backend)
    figures = compare(found, expected)
    assert figures.cosine_mean >= least
    assert figures.cosine_min >= 0.99
    some = encode(minilm_bundle, ENGLISH[:4], recipe=recipe, backend=backend)
    assert compare(some, found[:4]).cosine_min >= 0.999999


def test_a_bound_that_needs_floats_leaves_the_worst_products_in_float(
    tiny_checkpoint: Path, texts: Path, tmp_path: Path
) -> None:
    """A recipe bad enough at two products, judged against PyTorch."""
    out = tmp_path / "out"
    recipe = few("precise", name="mine", smoothquant_alphas=(), weight_bits=7)
    judged = run(tiny_checkpoint, plan(tmp_path / "plain", recipe, check=True, calibration=texts))
    least = min(verdict.figures.cosine_mean for verdict in judged.verdicts)
    bound = 1 - (1 - least) * 0.85
    exported = run(
        tiny_checkpoint, plan(out, recipe, check=True, calibration=texts, min_cosine=bound, max_float_share=0.5)
    )
    assert all(verdict.figures.cosine_mean >= bound for verdict in exported.verdicts)
    floats = []
    for name, engine in engines(out).items():
        assert engine.quantization
        floats.append([p.name for p in engine.quantization.products if p.mode is ProductMode.FLOAT])
        assert np.all(np.isfinite(encode(out, ENGLISH[:3], engine=name)))
    assert floats[0] == floats[1] != []
    assert 1 <= len(floats[0]) <= 6


def test_a_bound_that_cannot_be_met_is_refused_with_figures(tiny_checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    planned = plan(
        tmp_path / "out",
        check=True,
        calibration=texts,
        dialects=(Dialect.FUSED,),
        min_cosine=0.9999999,
        max_float_share=0.02,
    )
    with pytest.raises(
        EnginesRefusedError,
        match=r"recipe fast: mean cosine: expected >= 0\.9999999, got 0\.999\d+ with 0\.0% of the multiplications in "
        r"float, and 2\.0% are allowed: allow more by --max-float-share",
    ):
        run(tiny_checkpoint, planned)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def seven_bits(tiny_checkpoint: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's recipe in a file: `fast` with weights of 7 bits."""
    folder = tmp_path_factory.mktemp("seven")
    file = folder / "seven.json"
    recipe = few(name="seven-bits", weight_bits=7)
    file.write_text(json.dumps(recipe.to_json()), encoding="utf-8")
    run(tiny_checkpoint, plan(folder / "out", load_recipe(str(file)), calibration=texts))
    return folder / "out"


def test_weights_of_seven_bits(seven_bits: Path, tiny_bundle: Path) -> None:
    expected = encode(tiny_bundle, ENGLISH)
    for name, engine in engines(seven_bits).items():
        assert name.split(".")[2] == "seven-bits"
        assert engine.quantization
        assert engine.quantization.weight_bits == 7
        assert set(engine.requires) == ({"onnxruntime"} if name.startswith("fused") else {"onnxruntime", "openvino"})
        model = onnx.load(seven_bits / engine.file)
        arrays = [
            onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name.endswith(".weight")
        ]
        assert len(arrays) == 3 * 6
        assert all(array.dtype == np.int8 and np.abs(array.astype(int)).max() == 63 for array in arrays)
        for backend in engine.requires:
            found = encode(seven_bits, ENGLISH, engine=name, backend=backend)
            assert compare(found, expected).cosine_min > 0.998


def test_symmetric_activations(tiny_checkpoint: Path, tiny_bundle: Path, texts: Path, tmp_path: Path) -> None:
    run(tiny_checkpoint, plan(tmp_path / "out", few(), calibration=texts, activation=Activation.INT8))
    expected = encode(tiny_bundle, ENGLISH)
    for name, engine in engines(tmp_path / "out").items():
        assert name.endswith(".int8.fast.int8")
        assert engine.quantization
        assert {product.zero_point for product in engine.quantization.products} == {0}
        model = onnx.load(tmp_path / "out" / engine.file, load_external_data=False)
        points = [t for t in model.graph.initializer if t.name.endswith(".zero_point")]
        assert len(points) >= 3 * 4
        assert {(t.data_type, int(onnx.numpy_helper.to_array(t))) for t in points} == {(onnx.TensorProto.INT8, 0)}
        for backend in engine.requires:
            found = encode(tmp_path / "out", ENGLISH, engine=name, backend=backend)
            assert compare(found, expected).cosine_min > 0.998, (name, backend)


@pytest.mark.parametrize("case", ["pattern", "layer", "empty", "tiny", "unknown", "names"])
def test_what_cannot_work_is_refused_and_nothing_written(tiny_checkpoint: Path, tmp_path: Path, case: str) -> None:
    recipe, file, said = few(), tmp_path / "mine.txt", ""
    match case:
        case "pattern":
            modes = {dialect: {"*": ProductMode.STATIC, "ffn.down": ProductMode.FLOAT} for dialect in PADDED_DIALECTS}
            recipe, said = few(modes=modes), r"modes\.portable: 'ffn\.down' fits no product of this model"
        case "layer":
            modes = {dialect: {"*": ProductMode.STATIC, "layer.99.*": ProductMode.FLOAT} for dialect in PADDED_DIALECTS}
            recipe, said = (
                few(modes=modes),
                r"'layer\.99\.\*' fits no .*\n.*\n.*layer\.0\.attention\.qkv to layer\.2\.ffn",
            )
        case "empty":
            file.write_text("\n\n", encoding="utf-8")
            said = r"mine\.txt: expected two sentences or more"
        case "tiny":
            file.write_text("a line\nand another\n", encoding="utf-8")
            said = r"mine\.txt: expected at least 64 texts and 1000 tokens to calibrate on, got 2 texts and \d+ tokens"
        case "unknown":
            file.write_text("\U00012000\U00012001 \U00012002\n" * 200, encoding="utf-8")
            said = r"mine\.txt: 200 of 200 texts have more than 10% tokens that are unknown"
        case "names":
            modes = {dialect: {"layer.*.ffn.*": ProductMode.STATIC} for dialect in PADDED_DIALECTS}
            recipe, said = few(modes=modes), r"no pattern fits layer\.0\.attention\.qkv and 5 others"
    with pytest.raises(UsageError, match=said):
        run(tiny_checkpoint, plan(tmp_path / "out", recipe, calibration=file if file.exists() else None))
    assert not (tmp_path / "out").exists()


def damaged(folder: Path) -> None:
    """Channels that are dead or constant, and weights that are all zero: in rows, columns and a whole matrix."""
    tensors = load_file(folder / "model.safetensors")
    layer = "encoder.layer.0"
    for channel, constant in ((5, 0), (6, 3)):
        tensors[f"{layer}.attention.output.LayerNorm.weight"][channel] = 0
        tensors[f"{layer}.attention.output.LayerNorm.bias"][channel] = constant
    tensors[f"{layer}.intermediate.dense.weight"][7] = 0
    tensors[f"{layer}.intermediate.dense.bias"][7] = 0
    tensors[f"{layer}.attention.self.key.weight"][:, 9] = 0
    tensors[f"{layer}.attention.self.value.weight"][3] = 0
    tensors[f"{layer}.attention.self.value.bias"][3] = 0
    tensors["encoder.layer.1.attention.output.dense.weight"][:] = 0
    tensors["embeddings.word_embeddings.weight"][100] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_dead_and_constant_channels_give_no_nan(tiny_checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    folder, out = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny")), tmp_path / "out"
    damaged(folder)
    run(folder, plan(out, few(), few("precise"), floats=True, calibration=texts))
    expected = encode(out, ENGLISH, precision="fp32")
    for name, engine in engines(out).items():
        if engine.precision is Precision.INT8:
            assert compare(encode(out, ENGLISH, engine=name), expected).cosine_min > 0.998, name


def relative_error(found: Vectors, expected: Vectors) -> float:
    """Mean distance to the right vector over the mean distance between two sentences."""
    between = np.linalg.norm(expected[:, np.newaxis] - expected, axis=-1)
    mean = between.sum() / (len(expected) * (len(expected) - 1))
    return float(np.linalg.norm(found - expected, axis=1).mean() / mean)


@pytest.fixture(scope="module")
def outlier_bundle(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in with outlier channels in fp32, by both recipes, and by plain static per-tensor quantization."""
    folder = tmp_path_factory.mktemp("outliers")
    checkpoint = write_standin("tiny", folder / "tiny", outliers=True)
    plain = few(
        name="plain",
        modes=ALL_STATIC,
        smoothquant_alphas=(),
        smoothing_refinement_steps=0,
        head_transforms=False,
        split_channel_share=0,
        clip_ratios=(1.0,),
        rounding=Rounding.NEAREST,
        correct_bias=False,
        channel_shift=(),
    )
    run(checkpoint, plan(folder / "out", plain, *map(load_recipe, FOR_CPUS), floats=True, calibration=texts))
    return folder / "out"


@pytest.mark.parametrize("recipe", FOR_CPUS)
@pytest.mark.parametrize("dialect", PADDED_DIALECTS)
def test_outlier_channels_cost_a_quarter_of_what_plain_quantization_loses(
    outlier_bundle: Path, int8_bundle: Path, tiny_bundle: Path, dialect: Dialect, recipe: str
) -> None:
    def error(bundle: Path, recipe: str, fp32: Path) -> float:
        backend = "openvino" if dialect is Dialect.PORTABLE else "onnxruntime"
        found = encode(bundle, ENGLISH, precision="int8", recipe=recipe, backend=backend, dialect=dialect)
        return relative_error(found, encode(fp32, ENGLISH, precision="fp32"))

    found, plain = (error(outlier_bundle, name, outlier_bundle) for name in (recipe, "plain"))
    without = error(int8_bundle, recipe, tiny_bundle)
    assert found <= plain / 4, (found, plain)
    assert found <= 1.2 * without, (found, without)  # plain quantization: three times as much


def test_without_vnni_openvino_says_no_and_onnxruntime_takes_over(int8_bundle: Path) -> None:
    out = without_vnni(
        f"""
        from mexma_runtime.errors import EngineUnavailableError
        with Encoder.load(folder, precision="int8") as encoder:
            print(encoder.info.backend, encoder.info.dialect)
            print(*encoder.encode([{ENGLISH[0]!r}])[0])
        for engine in ("portable.int8.fast.uint8", "portable.int8.precise.uint8"):
            try:
                Encoder.load(folder, engine=engine, backend="openvino")
            except EngineUnavailableError as error:
                print(error)
        """,
        int8_bundle,
    )
    chosen, vector, *refusals = out.splitlines()
    assert chosen == "onnxruntime fused"
    with Encoder.load(int8_bundle, precision="int8") as encoder:
        assert (encoder.info.backend, encoder.info.dialect) == ("openvino", "portable")
        found = np.array([vector.split()], dtype=np.float32)
        assert compare(found, encoder.encode(ENGLISH[:1])).cosine_min > 0.999
    assert len(refusals) == 2
    assert "openvino saturates sums of int8 products" in refusals[0]
    assert "openvino computes no int8 products with a scale a group" in refusals[1]


def test_without_vnni_weights_of_seven_bits_keep_their_vectors(seven_bits: Path) -> None:
    code = f"""
    with Encoder.load(folder, precision="int8", backend="openvino") as encoder:
        for row in encoder.encode({ENGLISH[:6]!r}):
            print(*row)
    """
    out = without_vnni(code, seven_bits)
    found = np.array([line.split() for line in out.splitlines()], dtype=np.float32)
    expected = encode(seven_bits, ENGLISH[:6], precision="int8", backend="openvino")
    assert compare(found, expected).cosine_min > 0.9999


@pytest.mark.skipif(not EMULATOR, reason="needs qemu-x86_64, which emulates processors without VNNI")
@pytest.mark.parametrize("recipe", FOR_CPUS)
def test_without_vnni_onnxruntime_is_told_to_sum_exactly(int8_bundle: Path, recipe: str) -> None:
    """/proc/cpuinfo says what the machine has and not what the emulator has, so what is read there is replaced."""
    code = f"""
    import dataclasses, sys
    from mexma_runtime import Encoder
    from mexma_runtime.backends.cpu import onnxruntime as onnxruntime_cpu
    def detect_hardware(detect=onnxruntime_cpu.detect_hardware):
        return dataclasses.replace(detect(), instruction_sets=tuple(sys.argv[2].split()))
    onnxruntime_cpu.detect_hardware = detect_hardware
    options = {{"recipe": {recipe!r}, "backend": "onnxruntime", "dialect": "fused", "n_threads": 1}}
    for row in Encoder.load(sys.argv[1], **options).encode({ENGLISH[:6]!r}):
        print(*row)
    """
    found = {}
    for sets in ("avx2", "avx2 avx512_vnni"):
        command = [EMULATOR, "-cpu", "Haswell", sys.executable, "-c", textwrap.dedent(code), str(int8_bundle), sets]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[sets] = np.array([line.split() for line in out.splitlines()], dtype=np.float32)
    expected = encode(int8_bundle, ENGLISH[:6], recipe=recipe, backend="onnxruntime", dialect=Dialect.FUSED)
    assert np.abs(found["avx2"] - expected).max() < 1e-5
    assert np.abs(found["avx2 avx512_vnni"] - expected).max() > 1e-3


def test_engines_that_this_processor_cannot_judge_do_not_stop_the_others(
    tiny_checkpoint: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*WITHOUT_VNNI)
    with pytest.raises(EnginesRefusedError, match=r"portable\.int8\.precise\.uint8: openvino computes no"):
        run(tiny_checkpoint, plan(tmp_path / "out", few("precise"), check=True, calibration=texts))
    assert list(engines(tmp_path / "out")) == ["fused.int8.precise.uint8"]
