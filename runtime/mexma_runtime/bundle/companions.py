"""Files that make a bundle a model for other libraries: sentence-transformers and what reads its folders.

All of them follow from bundle.json, which alone decides what the vectors are. sentence-transformers rewrites them when
it saves a model, so no hash of them is kept; what they say of the vectors must be what bundle.json says.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from mexma_runtime.bundle.bundle import read_text
from mexma_runtime.bundle.manifest import MANIFEST_NAME, Manifest
from mexma_runtime.bundle.strict_json import loads
from mexma_runtime.bundle.whole_files import write_whole
from mexma_runtime.errors import BundleError

MODULES, SETTINGS, CONFIG = "modules.json", "config_sentence_transformers.json", "config.json"
COMPANIONS = (CONFIG, SETTINGS, MODULES)
MODULE_CLASS = "mexma_runtime.integrations.sentence_transformers.BundleModule"
"""What modules.json names and sentence-transformers imports. Every bundle has it, so it never changes."""
REQUIREMENTS = {
    "mexma-runtime": {"specifier": ">=0.1.0", "reason": "It runs the engines of this folder, which is its bundle."}
}
"""What sentence-transformers from version 6 on asks for before it loads anything."""

REPAIR = "`mexma build BUNDLE --target sentence-transformers` writes it again"


def with_companions(manifest: Manifest) -> Manifest:
    """`manifest` with the names of all companions."""
    return dataclasses.replace(manifest, companions=sorted(COMPANIONS))


def write_companions(folder: Path, manifest: Manifest, names: Collection[str] = COMPANIONS) -> None:
    """Write into `folder` those of `names` that `manifest` names, whole and in place of what is there; FileError."""
    for name, content in ((CONFIG, _config), (SETTINGS, _settings), (MODULES, _modules)):
        if name not in manifest.companions or name not in names:
            continue
        text = json.dumps(content(manifest), indent=2, sort_keys=True) + "\n"
        write_whole(folder / name, text.encode(), replaces_link=True)


def model_settings(manifest: Manifest) -> dict[str, Any]:
    """Arguments that give a SentenceTransformer the checkpoint's prompts and similarity function."""
    return {
        "prompts": manifest.text.known_prompts,
        "default_prompt_name": manifest.text.default_prompt_name,
        "similarity_fn_name": manifest.similarity.value,
    }


def contradiction(setting: Callable[[str], Any], manifest: Manifest) -> str | None:
    """What a SentenceTransformer, of which `setting` gives each by its name, says otherwise than bundle.json of vectors
    or scores.
    """
    for name, own in {"truncate_dim": None, **model_settings(manifest)}.items():
        given = setting(name)
        if _heard(name, given) != _heard(name, own):
            return f"{name} {given!r}, and {MANIFEST_NAME} has {own!r}"
    return None


def check_settings(folder: Path, manifest: Manifest) -> None:
    """BundleError where config_sentence_transformers.json contradicts bundle.json on vectors or scores."""
    path = folder / SETTINGS
    try:
        there = loads(read_text(path) or "{}")
    except ValueError as error:
        raise BundleError(path, f"not JSON ({error}): {REPAIR}") from None
    if not isinstance(there, dict):
        raise BundleError(path, f"expected an object: {REPAIR}")
    if said := contradiction(there.get, manifest):
        raise BundleError(
            path,
            f"{said}, which holds: {REPAIR}. Other settings are given when the model is loaded (prompts=...), or to "
            "the checkpoint, exported again",
        )


def other_modules(folder: Path) -> list[str]:
    """Modules that modules.json of `folder` has beside the bundle's: somebody has saved a model of more into it."""
    try:
        there = loads(read_text(folder / MODULES) or "[]")
    except (ValueError, BundleError):
        return []
    kinds = [str(entry.get("type")) for entry in there if isinstance(entry, dict)] if isinstance(there, list) else []
    return [kind for kind in kinds if kind != MODULE_CLASS]


def _heard(key: str, value: Any) -> Any:
    """What sentence-transformers makes of a value: an unset prompt is an empty one, an unset function the cosine."""
    if key == "prompts" and isinstance(value or {}, Mapping):
        return {name: text for name, text in (value or {}).items() if text}
    return value or "cosine" if key == "similarity_fn_name" else value


def _modules(_: Manifest) -> list[dict[str, Any]]:
    return [{"idx": 0, "name": "0", "path": "", "type": MODULE_CLASS}]


def _settings(manifest: Manifest) -> dict[str, Any]:
    return {"model_type": "SentenceTransformer", "requirements": REQUIREMENTS, **model_settings(manifest)}


def _config(manifest: Manifest) -> dict[str, Any]:
    """The names of transformers' config.json."""
    model = manifest.model
    return {
        "model_type": model.family,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "vocab_size": model.vocab_size,
        "pad_token_id": manifest.text.padding_id,
    }
