from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from mexma_export.bundle.engines import EngineWriter, group_size
from mexma_export.bundle.staging import Staging
from mexma_export.checkpoint.checkpoint import Checkpoint, load_checkpoint
from mexma_export.checkpoint.config import ModelConfig
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.graph.linear_groups import all_groups
from mexma_export.quantize.channel_splitting import n_copies
from mexma_export.quantize.options import QuantizationOptions
from mexma_export.quantize.recipe import Recipe, load_recipe
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry, Manifest, ProductMode, Quantization, QuantizedProduct
from mexma_runtime.errors import UsageError
from mexma_runtime.types import PADDED_DIALECTS, Dialect, Precision

FAST = load_recipe("fast")


BOUNDS = {"min_cosine": 0.999, "max_float_share": 0.5}


def options() -> QuantizationOptions:
    return QuantizationOptions(recipes=(FAST,))


@pytest.fixture
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(resolve_source(str(tiny_checkpoint)))


@pytest.fixture
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


@pytest.fixture
def writer(checkpoint: Checkpoint, manifest: Manifest, tmp_path: Path) -> Iterator[EngineWriter]:
    with Staging(tmp_path / "out") as staging:
        yield EngineWriter(checkpoint, manifest, staging, lambda what, done, total: None)


def engine(manifest: Manifest, errors: dict[str, float]) -> EngineEntry:
    """An int8 engine of these errors."""
    products = [
        QuantizedProduct(
            name=name,
            mode=ProductMode.STATIC if error else ProductMode.FLOAT,
            migration=None,
            scale=None,
            zero_point=None,
            error=error,
            error_plain=error,
            error_migrated=error,
        )
        for name, error in errors.items()
    ]
    quantization = Quantization(
        recipe_sha256="",
        seed=0,
        calibration="",
        calibration_sha256="",
        n_texts=1,
        n_tokens=1,
        weight_bits=8,
        group_size=None,
        products=products,
    )
    return dataclasses.replace(manifest.engines[0], quantization=quantization)


def errors_of(config: ModelConfig, **large: float) -> dict[str, float]:
    """1e-4 for each group, but `layer_1_ffn_down=0.1`."""
    named = {name.replace("_", ".", 2).replace("attention_", "attention."): error for name, error in large.items()}
    assert named.keys() <= set(all_groups(config))
    return dict.fromkeys(all_groups(config), 1e-4) | named


def test_the_share_in_float_is_of_multiplications(writer: EngineWriter, checkpoint: Checkpoint) -> None:
    assert writer.float_share(frozenset()) == 0
    assert writer.float_share(frozenset(all_groups(checkpoint.config))) == 1
    layer = (3 + 1 + 2 + 2) * 64 * 64
    assert writer.float_share(frozenset({"layer.1.attention.qkv"})) == pytest.approx(3 * 64 * 64 / (3 * layer))


def test_the_worst_products_of_any_dialect_go_first(
    writer: EngineWriter, checkpoint: Checkpoint, manifest: Manifest
) -> None:
    engines = [
        engine(manifest, errors_of(checkpoint.config, **{"layer_1_ffn.down": 0.05})),
        engine(manifest, errors_of(checkpoint.config, **{"layer_2_attention.output": 0.05})),
    ]
    chosen = writer.more_floats(engines, frozenset(), least_cosine=0.99, **BOUNDS)
    assert chosen == {"layer.1.ffn.down", "layer.2.attention.output"}


def test_at_least_one_more_each_time_and_none_is_taken_back(
    writer: EngineWriter, checkpoint: Checkpoint, manifest: Manifest
) -> None:
    floats: frozenset[str] = frozenset()
    for _ in range(3):
        errors = errors_of(checkpoint.config, **{"layer_1_ffn.down": 0.05, "layer_0_ffn.down": 0.01})
        now = engine(manifest, {name: 0 if name in floats else error for name, error in errors.items()})
        more = writer.more_floats([now], floats, least_cosine=0.99899, **BOUNDS)
        assert more > floats
        floats = more
    assert {"layer.1.ffn.down", "layer.0.ffn.down"} < floats


def test_never_over_the_share_allowed(writer: EngineWriter, checkpoint: Checkpoint, manifest: Manifest) -> None:
    one = engine(manifest, errors_of(checkpoint.config, **{"layer_1_ffn.down": 0.05}))
    for share in (0, 0.03, 0.1, 0.2, 1):
        chosen = writer.more_floats([one], frozenset(), least_cosine=0.1, min_cosine=0.9999, max_float_share=share)
        assert writer.float_share(chosen) <= share
        assert bool(chosen) == (share > 0.04)
    everything = frozenset(all_groups(checkpoint.config))
    assert writer.more_floats([one], everything, least_cosine=0.1, min_cosine=0.999, max_float_share=1) == everything


@pytest.mark.parametrize(
    ("hidden", "ffn", "asked", "expected"),
    [(1024, 4096, 128, 128), (384, 1536, 128, 128), (64, 128, 128, 64), (312, 1200, 128, 8), (768, 3072, 32, 32)],
)
def test_groups_of_channels_divide_what_products_read(
    checkpoint: Checkpoint, hidden: int, ffn: int, asked: int, expected: int
) -> None:
    config = dataclasses.replace(checkpoint.config, hidden_size=hidden, ffn_size=ffn)
    modes = {dialect: {"*": ProductMode.GROUP} for dialect in PADDED_DIALECTS}
    assert (
        group_size(dataclasses.replace(FAST, modes=modes, group_size=asked, split_channel_share=0), config) == expected
    )
    copied = dataclasses.replace(FAST, modes=modes, group_size=asked, split_channel_share=1 / 64)
    assert group_size(copied, config) == expected
    some = {dialect: {"*": ProductMode.TOKEN, "*.ffn.down": ProductMode.GROUP} for dialect in PADDED_DIALECTS}
    copied = dataclasses.replace(copied, modes=some)
    assert group_size(copied, config) == math.gcd(asked, ffn + n_copies(copied, "layer.0.ffn.down", ffn))
    assert group_size(FAST, config) == 0


def test_groups_that_openvino_would_compute_in_float_are_refused_before_the_work(
    checkpoint: Checkpoint, manifest: Manifest, tmp_path: Path
) -> None:
    config = dataclasses.replace(checkpoint.config, hidden_size=312, ffn_size=1200)
    precise = load_recipe("precise")
    with Staging(tmp_path / "out") as staging:
        writer = EngineWriter(dataclasses.replace(checkpoint, config=config), manifest, staging, lambda *_: None)
        with pytest.raises(
            UsageError, match=r"recipe precise: .* multiple of 16 .* do not divide this model's 312 and 1200"
        ):
            writer.quantized(((Precision.INT8, precise),), options(), (Dialect.PORTABLE,))
        assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipes": ()}, "no recipe"),
        ({"recipes": (FAST, load_recipe("precise"), FAST)}, "several recipes are called fast: engines are named"),
        ({"min_cosine": 1}, "min_cosine: expected a number between 0 and 1, got 1"),
        ({"min_cosine": 0}, "min_cosine: expected"),
        ({"min_cosine": float("nan")}, "min_cosine: expected"),
        ({"max_float_share": -0.1}, "max_float_share: expected a number from 0 to 1, got -0.1"),
        ({"max_float_share": float("nan")}, "max_float_share: expected"),
    ],
)
def test_wishes_that_mean_nothing_are_refused(changes: dict[str, object], said: str) -> None:
    wishes: dict[str, object] = {"recipes": (FAST,)} | changes
    with pytest.raises(UsageError, match=said):
        QuantizationOptions(**wishes)  # type: ignore[arg-type]


def test_a_recipe_for_another_model_is_refused_before_anything_is_written(writer: EngineWriter, tmp_path: Path) -> None:
    modes = {dialect: {"*": ProductMode.STATIC, "layer.99.*": ProductMode.FLOAT} for dialect in PADDED_DIALECTS}
    recipe: Recipe = dataclasses.replace(FAST, modes=modes)
    with pytest.raises(UsageError, match=r"'layer\.99\.\*' fits no product of this model"):
        writer.quantized(((Precision.INT8, recipe),), options(), (Dialect.FUSED,))
    assert writer.files == []
