from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mexma_runtime.bundle.manifest import (
    DIGEST,
    MANIFEST_NAME,
    SCHEMA,
    Certificate,
    Manifest,
    PositionScheme,
    ProductMode,
    Quantization,
    QuantizedProduct,
    TextEntry,
    space_fingerprint,
)
from mexma_runtime.bundle.strict_json import read_value
from mexma_runtime.errors import BundleError
from mexma_runtime.types import Pooling, Precision, Similarity

PATH = Path("a/bundle.json")
GOLDEN = Path(__file__).parents[3] / "golden"
QUANTIZATION = Quantization(
    recipe_sha256="2" * 64,
    seed=0,
    calibration="calibration.txt",
    calibration_sha256="3" * 64,
    n_texts=2,
    n_tokens=30,
    weight_bits=8,
    group_size=128,
    products=[
        QuantizedProduct(
            name="layer.0.ffn.up",
            mode=ProductMode.STATIC,
            migration=0.5,
            scale=0.125,
            zero_point=3,
            error=0.01,
            error_plain=0.04,
            error_migrated=0.02,
        ),
        QuantizedProduct(
            name="layer.0.ffn.down",
            mode=ProductMode.FLOAT,
            migration=None,
            scale=None,
            zero_point=None,
            error=0.0,
            error_plain=0.0,
            error_migrated=0.0,
        ),
    ],
)


@pytest.fixture
def manifest(bundle_folder: Path) -> Manifest:
    return Manifest.from_json((bundle_folder / MANIFEST_NAME).read_text(), path=PATH)


def edited(manifest: Manifest, edit: Callable[[Any], None]) -> str:
    """The manifest's JSON after `edit`, with the digest of what it then holds."""
    data = json.loads(manifest.to_json())
    del data[DIGEST]
    edit(data)
    data[DIGEST] = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    return json.dumps(data)


def test_what_is_written_is_read(manifest: Manifest) -> None:
    certificate = Certificate(
        reference="PyTorch",
        corpus="Sätze",
        corpus_sha256="1" * 64,
        backend="onnxruntime 1.31.1",
        provider="CPUExecutionProvider",
        processor="a processor",
        certified=False,
        note=None,
        figures={"cosine_min": 0.5, "n_sentences": 3, "top1_agreement": None},
    )
    engine = dataclasses.replace(
        manifest.engines[0], certificates=[certificate], recipe="r", activation="uint8", quantization=QUANTIZATION
    )
    changed = dataclasses.replace(manifest, engines=[engine])

    assert Manifest.from_json(changed.to_json(), path=PATH) == changed


def test_the_golden_file_is_read_and_written_as_it_is() -> None:
    path = GOLDEN / f"bundle.schema-{SCHEMA}.json"
    text = path.read_text(encoding="utf-8")

    read = Manifest.from_json(text, path=path)

    assert read.to_json() == text
    assert (read.schema, read.dim, read.pooling_mode, read.is_normalized) == (4, 1024, Pooling.CLS, False)
    assert (read.similarity_function, read.companions) == (Similarity.DOT, ["config.json", "modules.json"])
    assert [(e.name, e.quantization is None) for e in read.engines] == [
        ("fused.fp32", True),
        ("packed.fp32", True),
        ("portable.int8.fast.uint8", False),
    ]


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_what_older_schemas_lack_is_filled_in(schema: int) -> None:
    path = GOLDEN / f"bundle.schema-{schema}.json"

    read = Manifest.from_json(path.read_text(encoding="utf-8"), path=path)

    newer = GOLDEN / f"bundle.schema-{SCHEMA}.json"
    expected = Manifest.from_json(newer.read_text(encoding="utf-8"), path=newer)
    fused, packed, int8 = expected.engines
    assert read.engines == ([fused, int8][:schema] if schema < 3 else [fused, packed, int8])
    assert (read.similarity_function, read.companions) == (Similarity.COSINE, [])
    assert Manifest.from_json(read.to_json(), path=path) == read
    assert read.schema == SCHEMA


def test_a_whole_number_will_do_for_a_float(manifest: Manifest) -> None:
    engine = dataclasses.replace(manifest.engines[0], quantization=QUANTIZATION)
    manifest = dataclasses.replace(manifest, engines=[engine])

    def edit(data: Any) -> None:
        data["engines"][0]["quantization"]["products"][0].update(migration=1, error=0)

    quantization = Manifest.from_json(edited(manifest, edit), path=PATH).engines[0].quantization

    assert quantization is not None
    product = quantization.products[0]
    assert (product.migration, product.error) == (1.0, 0.0)
    assert {type(product.migration), type(product.error)} == {float}


@pytest.mark.parametrize("mode", ProductMode)
def test_groups_are_seen(mode: ProductMode) -> None:
    product = dataclasses.replace(QUANTIZATION.products[1], mode=mode)
    quantization = dataclasses.replace(QUANTIZATION, products=[QUANTIZATION.products[0], product])

    assert quantization.has_scale_groups == (mode is ProductMode.GROUP)


def test_a_newer_schema_is_refused_before_anything_else(manifest: Manifest) -> None:
    text = json.dumps({"schema": SCHEMA + 1, "what": "a later version writes"})

    with pytest.raises(BundleError, match=rf"a/bundle.json: schema {SCHEMA + 1}, this reader knows up to {SCHEMA}"):
        Manifest.from_json(text, path=PATH)


@pytest.mark.parametrize("text", ["", "{", "nonsense", '{"schema": 1'])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match="not JSON"):
        Manifest.from_json(text, path=PATH)


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"schema": "1"}', '{"schema": true}'])
def test_json_without_a_schema_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match="no schema version"):
        Manifest.from_json(text, path=PATH)


def test_an_edited_manifest_is_refused(manifest: Manifest) -> None:
    text = manifest.to_json().replace('"max_tokens": 16', '"max_tokens": 17')

    with pytest.raises(BundleError, match="damaged or edited"):
        Manifest.from_json(text, path=PATH)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda m: m["text"].pop("max_tokens"), "text: missing fields: max_tokens"),
        (lambda m: m["text"].update(colour="red"), "text: unknown fields: colour"),
        (
            lambda m: m["text"].update(max_tokens="16"),
            'text.max_tokens: expected a whole number from 1 to 2147483647, got "16"',
        ),
        (
            lambda m: m["text"].update(max_tokens=True),
            "text.max_tokens: expected a whole number from 1 to 2147483647, got true",
        ),
        (lambda m: m["text"].update(default_prompt_name=3), "text.default_prompt_name: expected str, got 3"),
        (lambda m: m["text"].update(prompts=[]), "text.prompts: expected an object"),
        (lambda m: m["text"].update(position_scheme="rotary"), "position_scheme: expected one of from_zero, after_pad"),
        (
            lambda m: m["engines"][1].update(precision="int4"),
            r"engines\[1\].precision: expected one of fp32, fp16, int8, fp8",
        ),
        (lambda m: m.update(engines={}), "engines: expected a list"),
        (lambda m: m.update(model=None), "model: expected an object"),
        (lambda m: m["files"].pop(), "files that the list of files lacks: weights.bin"),
        (lambda m: m["files"].append(m["files"][0]), "listed twice"),
        (lambda m: m["engines"].append(m["engines"][0]), "listed twice"),
        *(
            (lambda m, name=name: m["files"][0].update(name=name), "is none of a file in the bundle's folder")
            for name in ("../outside", "/outside", "", ".", "..", "local", "a\0b", "\ud800")
        ),
        (lambda m: m.update(schema=0), "no schema version"),
        (lambda m: m.update(schema=-1), "no schema version"),
        (lambda m: m["pooling"].update(value="max"), "pooling.value: expected one of cls, mean, got 'max'"),
        (lambda m: m["normalize"].update(value="yes"), "normalize.value: expected one of true, false, got 'yes'"),
        (lambda m: m["model"].update(hidden_size=-1), "model.hidden_size: expected a whole number from 1 to"),
        (lambda m: m["text"].update(padding_id=1 << 63), "text.padding_id: expected an int32 of 0 or more"),
    ],
)
def test_a_wrong_field_is_named(manifest: Manifest, edit: Callable[[Any], None], said: str) -> None:
    with pytest.raises(BundleError, match=said):
        Manifest.from_json(edited(manifest, edit), path=PATH)


def test_all_wrong_fields_are_told_at_once(manifest: Manifest) -> None:
    data = json.loads(manifest.to_json())
    data["text"].update(max_tokens="16", colour="red")
    data["engines"][1].update(precision="int4")
    del data[DIGEST]
    with pytest.raises(BundleError) as caught:
        read_value(Manifest, data, path=Path("bundle.json"))
    assert [line.strip(" -") for line in str(caught.value).splitlines()] == [
        "bundle.json:",
        "text: unknown fields: colour",
        'text.max_tokens: expected a whole number from 1 to 2147483647, got "16"',
        'engines[1].precision: expected one of fp32, fp16, int8, fp8, got "int4"',
    ]


def test_the_fingerprint_changes_with_all_that_changes_vectors() -> None:
    text = TextEntry(
        tokenizer="tokenizer.json",
        max_tokens=512,
        max_tokens_source="config.json",
        lower_case=False,
        padding_id=1,
        position_scheme=PositionScheme.AFTER_PADDING,
    )
    first: dict[str, Any] = {
        "weights_sha256": "a",
        "tokenizer_sha256": "b",
        "text": text,
        "pooling": Pooling.CLS,
        "normalize": False,
        "precision": Precision.FP32,
        "graph_sha256": None,
    }
    others: list[dict[str, Any]] = [
        {"weights_sha256": "c"},
        {"tokenizer_sha256": "c"},
        {"text": dataclasses.replace(text, max_tokens=256)},
        {"text": dataclasses.replace(text, lower_case=True)},
        {"text": dataclasses.replace(text, prompts={"query": "query: "}, default_prompt_name="query")},
        {"pooling": Pooling.MEAN},
        {"normalize": True},
        {"precision": Precision.INT8},
        {"graph_sha256": "d"},
    ]

    prints = [space_fingerprint(**{**first, **other}) for other in [{}, *others]]

    assert len(set(prints)) == len(prints)
    assert space_fingerprint(**{**first, "text": dataclasses.replace(text, max_tokens_source="asked")}) == prints[0]
