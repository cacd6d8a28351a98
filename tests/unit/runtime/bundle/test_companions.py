from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mexma_runtime.bundle.bundle import Bundle, read_manifest
from mexma_runtime.bundle.companions import (
    COMPANIONS,
    MODULE_CLASS,
    SETTINGS,
    check_settings,
    model_settings,
    with_companions,
    write_companions,
)
from mexma_runtime.bundle.manifest import MANIFEST_NAME, Manifest
from mexma_runtime.errors import BundleError, FileError

MakeBundle = Callable[..., Path]


def test_they_say_what_the_manifest_says(make_bundle: MakeBundle) -> None:
    folder = make_bundle(similarity="dot", default_prompt_name="query")
    manifest = with_companions(Bundle.open(folder).manifest)

    write_companions(folder, manifest)

    read = {name: json.loads((folder / name).read_text(encoding="utf-8")) for name in COMPANIONS}
    assert read["modules.json"] == [{"idx": 0, "name": "0", "path": "", "type": MODULE_CLASS}]
    assert (read["config.json"]["model_type"], read["config.json"]["hidden_size"]) == ("xlm-roberta", 8)
    settings = read[SETTINGS]
    assert settings["prompts"] == {"query": "the ", "document": "", "passage": ""}
    assert (settings["default_prompt_name"], settings["similarity_fn_name"]) == ("query", "dot")
    assert settings["requirements"].keys() == {"mexma-runtime"}
    check_settings(folder, manifest)


def test_the_class_that_every_bundle_names_is_there() -> None:
    """Bundles live longer than versions: the path is never changed."""
    pytest.importorskip("sentence_transformers")
    assert MODULE_CLASS == "mexma_runtime.integrations.sentence_transformers.BundleModule"
    module, _, name = MODULE_CLASS.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert f"{found.__module__}.{found.__name__}" == MODULE_CLASS


def test_they_are_named_and_not_hashed(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    manifest = with_companions(Bundle.open(folder).manifest)
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")

    assert Bundle.open(folder).manifest.companions == sorted(COMPANIONS)  # none of them is there
    for name in COMPANIONS:
        (folder / name).write_text("changed", encoding="utf-8")
    assert Bundle.open(folder, verify=True).manifest == manifest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"prompts": {"query": "find: "}},
            r"prompts \{'query': 'find: '\}, and bundle.json has \{'query': 'the ",
        ),
        ({"prompts": {}}, r"prompts \{\}, and bundle.json has"),
        ({"prompts": None}, "prompts None, and bundle.json has"),
        ({"prompts": 3}, "prompts 3, and bundle.json has"),
        ({"default_prompt_name": "query"}, "default_prompt_name 'query', and bundle.json has None"),
        ({"similarity_fn_name": "dot"}, "similarity_fn_name 'dot', and bundle.json has 'cosine'"),
        ({"truncate_dim": 4}, "truncate_dim 4, and bundle.json has None"),
    ],
)
def test_what_contradicts_the_manifest_is_refused(
    make_bundle: MakeBundle, settings: dict[str, Any], message: str
) -> None:
    folder = make_bundle()
    own = model_settings(Bundle.open(folder).manifest)
    (folder / SETTINGS).write_text(json.dumps(own | settings), encoding="utf-8")

    with pytest.raises(BundleError, match=rf"{SETTINGS}: {message}.*--target sentence-transformers"):
        check_settings(folder, Bundle.open(folder).manifest)


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_settings_that_cannot_be_read_are_refused(make_bundle: MakeBundle, text: str) -> None:
    folder = make_bundle()
    (folder / SETTINGS).write_text(text, encoding="utf-8")

    with pytest.raises(BundleError, match=rf"{SETTINGS}: .*--target sentence-transformers"):
        check_settings(folder, Bundle.open(folder).manifest)


def test_what_is_said_in_other_words_is_no_contradiction(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    said = {"prompts": {"query": "the ", "document": None}, "truncate_dim": None, "__version__": {"pytorch": "3"}}
    (folder / SETTINGS).write_text(json.dumps(said), encoding="utf-8")

    check_settings(folder, Bundle.open(folder).manifest)


def test_each_is_replaced_whole_or_stays(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    manifest = with_companions(Bundle.open(folder).manifest)
    (folder / "modules.json").mkdir()

    with pytest.raises(FileError, match=r"modules.json"):
        write_companions(folder, manifest)
    assert not list(folder.glob(".*"))


def test_a_bundle_that_names_none_gets_none(make_bundle: MakeBundle) -> None:
    folder = make_bundle()

    write_companions(folder, Bundle.open(folder).manifest)

    assert not [name for name in COMPANIONS if (folder / name).exists()]


@pytest.mark.parametrize("name", [MANIFEST_NAME, "weights.bin", "../config.json", "local"])
def test_no_other_file_is_a_companion(make_bundle: MakeBundle, name: str) -> None:
    folder = make_bundle()
    manifest: Manifest = dataclasses.replace(Bundle.open(folder).manifest, companions=[name])
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")

    with pytest.raises(BundleError, match=r"refused|listed twice"):
        read_manifest(folder)
