"""bundle.json: what a bundle says of itself, as frozen dataclasses that read and write its JSON.

History of the schema (a reader knows every version up to its own):
  1  first release
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from mexma_runtime.errors import BundleError
from mexma_runtime.types import Dialect, Pooling, Precision

SCHEMA = 1
MANIFEST_NAME = "bundle.json"
DIGEST = "content_sha256"
"""The field of bundle.json that tells a flipped bit; not part of the Manifest."""


class PositionScheme(StrEnum):
    """How position ids follow from token ids."""

    FROM_ZERO = "from_zero"
    """BERT: 0, 1, 2, ..."""
    AFTER_PADDING = "after_padding"
    """(XLM-)RoBERTa: padding_id + 1, + 2, ... over the tokens that are not padding; padding itself keeps padding_id,
    a literal "<pad>" in a text too (transformers' create_position_ids_from_input_ids)."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of the bundle."""

    name: str
    sha256: str
    size: int
    """Bytes."""


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """The checkpoint that the bundle was made from."""

    id: str
    """Its id on the hub, `standin:NAME`, or the folder's name."""
    revision: str | None
    """The commit on the hub, where there is one."""
    weights_sha256: str
    family: str
    """`xlm-roberta` or `bert`."""
    n_layers: int
    hidden_size: int
    n_heads: int
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A choice that changes the vectors, and where it came from."""

    value: str
    source: str


@dataclass(frozen=True, kw_only=True)
class TextEntry:
    """How text becomes ids, and ids positions."""

    tokenizer: str
    """File name of the tokenizer in the bundle."""
    max_tokens: int
    """Special tokens included."""
    max_tokens_source: str
    lower_case: bool
    padding_id: int
    position_scheme: PositionScheme
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """How far an engine's vectors were from a reference, and on what that was measured."""

    reference: str
    """Library, model class, number format and device that gave the reference vectors."""
    corpus: str
    corpus_sha256: str
    backend: str
    """Library and version that ran the engine."""
    provider: str
    processor: str
    """Processor model and the instruction sets that matter, or the GPU."""
    certified: bool
    note: str | None
    """Why it is not certified, where it is not."""
    figures: dict[str, float | int | None]


@dataclass(frozen=True, kw_only=True)
class EngineEntry:
    """One graph of the bundle and what it takes to run it."""

    name: str
    """`DIALECT.PRECISION[.RECIPE]`, unique in the bundle."""
    dialect: Dialect
    precision: Precision
    recipe: str | None
    activation: str | None
    """Number format of quantized activations; None where there are none."""
    file: str
    weights: list[str]
    """Files of external data that the graph refers to."""
    inputs: list[str]
    output: str
    requires: dict[str, str]
    """Backend -> the least version of its library that runs this engine."""
    space: str
    """Fingerprint of the vector space: vectors of equal fingerprints may be compared without a thought."""
    certificates: list[Certificate] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All of bundle.json."""

    schema: int
    writer: str
    """Name and version of what wrote the bundle."""
    model: ModelEntry
    pooling: Setting
    normalize: Setting
    text: TextEntry
    files: list[FileEntry]
    engines: list[EngineEntry]

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self.model.hidden_size

    @property
    def pooling_mode(self) -> Pooling:
        """The pooling as its enumeration."""
        return Pooling(self.pooling.value)

    @property
    def is_normalized(self) -> bool:
        """Whether the checkpoint's own vectors have length 1."""
        return self.normalize.value == "true"

    def file(self, name: str) -> FileEntry:
        """The entry of one file; KeyError where there is none."""
        return next(entry for entry in self.files if entry.name == name)

    def to_json(self) -> str:
        """The text of bundle.json: sorted keys, so that equal manifests are equal bytes; and a digest."""
        data = dataclasses.asdict(self)
        return json.dumps({**data, DIGEST: _digest(data)}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, path: Path) -> Manifest:
        """Read bundle.json's text; BundleError names `path`, the field, what was expected and what was there."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise BundleError(path, f"not JSON ({error}): the file is damaged: remove it and export again") from None
        schema = data.get("schema") if isinstance(data, dict) else None
        if not isinstance(schema, int) or isinstance(schema, bool):
            raise BundleError(path, "no schema version: this is not a bundle's manifest")
        if schema > SCHEMA:
            raise BundleError(
                path, f"schema {schema}, this reader knows up to {SCHEMA}: upgrade mexma-runtime, or export again"
            )
        if data.pop(DIGEST, None) != _digest(data):
            raise BundleError(
                path, f"its {DIGEST} is not that of its content: damaged or edited: remove it and export again"
            )
        manifest = _read(cls, data, path, "")
        assert isinstance(manifest, cls)
        _check_references(manifest, path)
        return manifest


def space_fingerprint(
    *,
    weights_sha256: str,
    tokenizer_sha256: str,
    text: TextEntry,
    pooling: Pooling,
    normalize: bool,
    precision: Precision,
    recipe: str | None,
) -> str:
    """16 hexadecimal digits that differ where vectors may differ by more than rounding of one precision."""
    prompt = text.prompts.get(text.default_prompt_name or "", "")
    settings = [text.max_tokens, text.lower_case, prompt, pooling, normalize, precision, recipe]
    parts = [weights_sha256, tokenizer_sha256, *settings]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _check_references(manifest: Manifest, path: Path) -> None:
    files = [entry.name for entry in manifest.files]
    for name in files:
        if Path(name).name != name or name in (".", ".."):
            raise BundleError(path, f"file name {name!r} leaves the bundle's folder: refused")
    needed = {manifest.text.tokenizer} | {
        name for engine in manifest.engines for name in (engine.file, *engine.weights)
    }
    if missing := sorted(needed - set(files)):
        raise BundleError(path, f"engines refer to files that the list of files lacks: {', '.join(missing)}")
    names = [engine.name for engine in manifest.engines]
    if len(set(names)) != len(names) or len(set(files)) != len(files):
        raise BundleError(path, "an engine or a file is listed twice")


def _read(expected: Any, value: Any, path: Path, where: str) -> Any:
    """Turn JSON `value` into `expected` (a dataclass, enumeration, list, dict, union or plain type), strictly."""

    def refuse(wanted: str) -> BundleError:
        return BundleError(path, f"{where or 'top level'}: expected {wanted}, got {json.dumps(value)[:80]}")

    origin = typing.get_origin(expected)
    if dataclasses.is_dataclass(expected):
        assert isinstance(expected, type)
        if not isinstance(value, dict):
            raise refuse("an object")
        hints = typing.get_type_hints(expected)
        if value.keys() != hints.keys():
            differing = ", ".join(sorted(value.keys() ^ hints.keys()))
            raise BundleError(path, f"{where or 'top level'}: missing or unknown fields: {differing}")
        return expected(**{k: _read(hints[k], v, path, f"{where}.{k}".lstrip(".")) for k, v in value.items()})
    if origin is types.UnionType:
        if value is None and type(None) in typing.get_args(expected):
            return None
        options = [option for option in typing.get_args(expected) if option is not type(None)]
        return _read(type(value) if type(value) in options else options[0], value, path, where)
    if origin is list:
        if not isinstance(value, list):
            raise refuse("a list")
        return [_read(typing.get_args(expected)[0], item, path, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise refuse("an object")
        return {k: _read(typing.get_args(expected)[1], v, path, f"{where}.{k}") for k, v in value.items()}
    if isinstance(expected, type) and issubclass(expected, StrEnum):
        if value not in list(expected):
            raise refuse(f"one of {', '.join(expected)}")
        return expected(value)
    if type(value) is not expected:
        raise refuse(expected.__name__)
    return value
