from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mexma_export.bundle.jobs import FloatJob, QuantizedJob, jobs, next_job
from mexma_export.bundle.request import ExportRequest
from mexma_export.checkpoint.checkpoint import Checkpoint, load_checkpoint
from mexma_export.checkpoint.config import ModelConfig
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.graph.input_quantization import Activation
from mexma_export.graph.linear_groups import all_groups
from mexma_export.graph.weights import weights_bytes
from mexma_export.quantize.options import QuantizationOptions
from mexma_export.quantize.recipe import Recipe, load_recipe
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry, Manifest, ProductMode, Quantization, QuantizedProduct
from mexma_runtime.errors import UsageError
from mexma_runtime.types import PADDED_DIALECTS, Dialect, Precision

FAST = load_recipe("fast")
MakeJob = Callable[..., QuantizedJob]


@pytest.fixture
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(resolve_source(str(tiny_checkpoint)))


@pytest.fixture
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


def request_of(*recipes: Recipe, precisions: tuple[Precision, ...] = (Precision.INT8,), **wishes: Any) -> ExportRequest:
    options = {name: wishes.pop(name) for name in ("min_cosine", "max_float_share") if name in wishes}
    quantization = QuantizationOptions(recipes=recipes, **options) if recipes else None
    return ExportRequest(out=Path("bundle"), precisions=precisions, quantization=quantization, **wishes)


@pytest.fixture
def job(checkpoint: Checkpoint) -> MakeJob:
    (made,) = jobs(request_of(FAST, min_cosine=0.999, max_float_share=0.5), checkpoint)
    assert isinstance(made, QuantizedJob)

    def changed(**changes: Any) -> QuantizedJob:
        return dataclasses.replace(made, **changes)

    return changed


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


def test_the_jobs_of_a_request_are_a_precision_or_a_recipe_each(checkpoint: Checkpoint) -> None:
    for_tensorrt = load_recipe("tensorrt")
    precisions = (Precision.FP8, Precision.FP32, Precision.INT8, Precision.FP16)
    floats = request_of(precisions=(Precision.FP32,), dialects=tuple(Dialect))
    n_bytes = weights_bytes(checkpoint, Precision.FP32)
    assert jobs(floats, checkpoint) == [FloatJob(precision=Precision.FP32, dialects=tuple(Dialect), n_bytes=n_bytes)]
    found = jobs(request_of(FAST, for_tensorrt, precisions=precisions), checkpoint)
    assert [job.precision for job in found] == ["fp32", "fp16", "int8", "int8", "fp8"]
    quantized = [job for job in found if isinstance(job, QuantizedJob)]
    assert [(job.recipe.name, job.activation, job.dialects) for job in quantized] == [
        ("fast", Activation.UINT8, PADDED_DIALECTS),
        ("tensorrt", Activation.INT8, (Dialect.PORTABLE,)),
        ("tensorrt", Activation.E4M3, (Dialect.PORTABLE,)),
    ]
    assert [(job.min_cosine, job.max_float_share) for job in quantized] == [(None, 0.1), (None, 0.1), (0.999, 0.7)]
    unjudged = jobs(request_of(for_tensorrt, precisions=(Precision.FP8,), check_parity=False), checkpoint)
    assert [job.min_cosine for job in unjudged if isinstance(job, QuantizedJob)] == [None]


def test_the_share_in_float_is_of_multiplications(job: MakeJob, checkpoint: Checkpoint) -> None:
    assert job().float_share == 0
    assert job(floats=frozenset(all_groups(checkpoint.config))).float_share == 1
    layer = (3 + 1 + 2 + 2) * 64 * 64
    assert job(floats=frozenset({"layer.1.attention.qkv"})).float_share == pytest.approx(3 * 64 * 64 / (3 * layer))


def test_the_worst_products_of_any_dialect_go_first(job: MakeJob, checkpoint: Checkpoint, manifest: Manifest) -> None:
    engines = [
        engine(manifest, errors_of(checkpoint.config, **{"layer_1_ffn.down": 0.05})),
        engine(manifest, errors_of(checkpoint.config, **{"layer_2_attention.output": 0.05})),
    ]
    chosen = next_job(job(), engines, 0.99)
    assert chosen == job(floats=frozenset({"layer.1.ffn.down", "layer.2.attention.output"}))


def test_at_least_one_more_each_time_and_none_is_taken_back(
    job: MakeJob, checkpoint: Checkpoint, manifest: Manifest
) -> None:
    now = job()
    for _ in range(3):
        errors = errors_of(checkpoint.config, **{"layer_1_ffn.down": 0.05, "layer_0_ffn.down": 0.01})
        found = engine(manifest, {name: 0 if name in now.floats else error for name, error in errors.items()})
        more = next_job(now, [found], 0.99899)
        assert more
        assert more.floats > now.floats
        now = more
    assert {"layer.1.ffn.down", "layer.0.ffn.down"} < now.floats


def test_never_over_the_share_allowed(job: MakeJob, checkpoint: Checkpoint, manifest: Manifest) -> None:
    one = engine(manifest, errors_of(checkpoint.config, **{"layer_1_ffn.down": 0.05}))
    for share in (0, 0.03, 0.1, 0.2, 1):
        chosen = next_job(job(min_cosine=0.9999, max_float_share=share), [one], 0.1)
        assert bool(chosen) == (share > 0.04)
        assert chosen is None or 0 < chosen.float_share <= share
    everything = frozenset(all_groups(checkpoint.config))
    assert next_job(job(floats=everything, max_float_share=1), [one], 0.1) is None


def test_no_job_follows_where_the_cosine_is_met_or_none_was_asked_for(job: MakeJob, manifest: Manifest) -> None:
    one = engine(manifest, {"layer.1.ffn.down": 0.05})
    assert next_job(job(), [one], 0.999) is None
    assert next_job(job(min_cosine=None), [one], 0.1) is None


def test_groups_that_openvino_would_compute_in_float_are_refused_before_the_work(checkpoint: Checkpoint) -> None:
    config = dataclasses.replace(checkpoint.config, hidden_size=312, ffn_size=1200)
    other, precise = dataclasses.replace(checkpoint, config=config), load_recipe("precise")
    with pytest.raises(
        UsageError, match=r"recipe precise: .* multiple of 16 .* of 128 would be 8 in this model, .* 312 and 1200"
    ):
        jobs(request_of(precise, dialects=(Dialect.PORTABLE,)), other)
    assert jobs(request_of(precise, dialects=(Dialect.FUSED,)), other)


def test_a_recipe_for_another_model_is_refused(checkpoint: Checkpoint) -> None:
    modes = {dialect: {"*": ProductMode.STATIC, "layer.99.*": ProductMode.FLOAT} for dialect in PADDED_DIALECTS}
    recipe = dataclasses.replace(FAST, modes=modes)
    with pytest.raises(UsageError, match=r"'layer\.99\.\*' fits no product of this model"):
        jobs(request_of(recipe), checkpoint)
