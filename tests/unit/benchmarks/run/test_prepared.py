"""A bundle made ready: int8 engines are added where they are asked for and missing."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from mexma_benchmarks.run.fidelity import calibration_of
from mexma_benchmarks.run.prepared import Prepared, lacking_recipes, prepare_model
from mexma_benchmarks.run.subjects import Subject, engine_subjects
from mexma_export.checkpoint.sources import resolve_source
from mexma_export.quantize.recipe import FOR_CPUS
from mexma_runtime.backends import choice
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.types import PADDED_DIALECTS, Precision


def prepare(checkpoint: Path, bundle: Path, *, int8: bool) -> Prepared:
    return prepare_model(
        resolve_source(str(checkpoint)),
        pooling=None,
        bundle=bundle,
        int8=int8,
        n_threads=1,
        device="cpu",
        report=lambda *_: None,
    )


@pytest.fixture(scope="module")
def prepared(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    bundle = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("prepared") / "bundle")
    return prepare(tiny_checkpoint, bundle, int8=True)


def test_missing_int8_engines_are_added_to_a_bundle(prepared: Prepared, tiny_bundle: Path) -> None:
    before, after = Bundle.open(tiny_bundle).manifest.engines, prepared.bundle.manifest.engines

    names = [f"{dialect}.int8.{recipe}.uint8" for recipe in FOR_CPUS for dialect in PADDED_DIALECTS]
    assert sorted(engine.name for engine in after) == sorted([*names, *(engine.name for engine in before)])
    assert lacking_recipes(prepared.bundle.manifest) == ()


def test_a_bundle_that_has_them_stays_as_it_is(prepared: Prepared, tiny_checkpoint: Path) -> None:
    manifest = prepared.bundle.folder / "bundle.json"
    before = manifest.stat()

    again = prepare(tiny_checkpoint, prepared.bundle.folder, int8=True)

    assert manifest.stat().st_mtime_ns == before.st_mtime_ns
    assert again.bundle == prepared.bundle


def test_without_asking_no_int8_is_made(tiny_checkpoint: Path, tmp_path: Path) -> None:
    manifest = prepare(tiny_checkpoint, tmp_path / "bundle", int8=False).bundle.manifest

    assert {engine.precision for engine in manifest.engines} == {Precision.FP32}
    assert lacking_recipes(manifest) == lacking_recipes(None) == FOR_CPUS


def test_a_recipe_without_the_engine_of_a_dialect_is_lacking(prepared: Prepared) -> None:
    manifest = prepared.bundle.manifest
    kept = [engine for engine in manifest.engines if engine.name != "portable.int8.precise.uint8"]

    assert lacking_recipes(dataclasses.replace(manifest, engines=kept)) == ("precise",)


def test_engines_were_calibrated_on_the_packages_own_text_and_others_on_nothing_known(prepared: Prepared) -> None:
    def calibrated(**options: str) -> str | None:
        text = calibration_of(Subject(name="x", role="engine", adapter="mexma", options=options), prepared)
        return text.described(frozenset({"never written"})) if text else None

    assert calibrated(engine="fused.fp32") is None
    said = calibrated(engine="fused.int8.fast.uint8")
    assert said == "mexma-runtime calibration text, none of the sentences judged here among it"

    manifest = prepared.bundle.manifest
    engines = [
        dataclasses.replace(engine, quantization=dataclasses.replace(made, calibration_sha256="0" * 64))
        for engine in manifest.engines
        if (made := engine.quantization)
    ]
    others = dataclasses.replace(prepared.bundle, manifest=dataclasses.replace(manifest, engines=engines))
    text = calibration_of(
        Subject(name="x", role="engine", adapter="mexma", options={"engine": engines[0].name}),
        dataclasses.replace(prepared, bundle=others),
    )
    assert text is not None
    assert text.texts is None


def test_an_engine_that_nothing_here_runs_is_listed_with_the_reason(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda name: None if name == "openvino" else object())

    *runs, other = engine_subjects(prepared.bundle, "cpu")

    assert {subject.unavailable for subject in runs} == {None}
    assert other.name == "mexma portable.int8.precise.uint8"
    assert other.unavailable == "no backend that is installed runs it here on cpu: it is for openvino on cpu"
