"""bundle.json: what a bundle says of itself, as frozen dataclasses that read and write its JSON.

History of the schema (a reader knows every version up to its own):
  1  first release
  2  int8: EngineEntry.quantization
  3  the dialect packed, with inputs of its own
  4  Manifest.similarity; Manifest.companions
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from mexma_runtime.bundle.strict_json import Check, loads, read_value
from mexma_runtime.errors import BundleError
from mexma_runtime.types import QUANTIZED, Dialect, Pooling, Precision, Similarity

SCHEMA = 4
GROUP_STEP = 16
"""OpenVINO finds scales for groups of channels whose size is a multiple of this."""
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


FLAGS = ("true", "false")
"""What `normalize.value` may be."""
LOCAL = "local"
"""The folder of what belongs to one machine."""
Size: TypeAlias = Annotated[int, Check(expected="a whole number from 1 to 2147483647", holds=lambda n: 0 < n < 1 << 31)]


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
    n_layers: Size
    hidden_size: Size
    n_heads: Size
    vocab_size: Size


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A choice that changes the vectors, and where it came from."""

    value: str
    source: str


PROMPTS = {"query": "", "document": ""}
"""Names that every model knows, as in sentence-transformers: empty unless the checkpoint says more."""
DEFAULT_SIMILARITY = Setting(value=Similarity.COSINE.value, source="sentence-transformers' default")


@dataclass(frozen=True, kw_only=True)
class TextEntry:
    """How text becomes ids, and ids positions."""

    tokenizer: str
    """File name of the tokenizer in the bundle."""
    max_tokens: Size
    """Special tokens included."""
    max_tokens_source: str
    lower_case: bool
    padding_id: Annotated[int, Check(expected="an int32 of 0 or more", holds=lambda n: 0 <= n < 1 << 31)]
    position_scheme: PositionScheme
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None

    @property
    def known_prompts(self) -> dict[str, str]:
        """What a prompt may be called, and what each puts before a text."""
        return PROMPTS | self.prompts


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


class ProductMode(StrEnum):
    """How the activations of one matrix product are quantized."""

    STATIC = "static"
    """By one scale for all text, found in calibration."""
    TOKEN = "token"
    """By a scale for each token, found while computing by the graph itself."""
    GROUP = "group"
    """By a scale for each token and group of its channels, found while computing by OpenVINO."""
    FLOAT = "float"
    """Not at all."""


@dataclass(frozen=True, kw_only=True)
class QuantizedProduct:
    """What became of one matrix product."""

    name: str
    """Its path in the graph: `layer.3.ffn.down`."""
    mode: ProductMode
    migration: float | None
    """SmoothQuant's alpha; None: not smoothed."""
    scale: float | None
    """Of static activations; None for others."""
    zero_point: int | None
    """Of activations that are static or have a scale a token; None for others."""
    error: float
    """Mean square error of the product's output on calibration text, as a share of its variance; 0 in float."""
    error_plain: float
    """The same with nearest rounding over the whole range: what the search began with."""
    error_migrated: float
    """The same with heads, channels, smoothing and ranges as chosen, before rounding and bias were."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How an int8 or fp8 engine was made: enough to make it again."""

    recipe_sha256: str
    seed: int
    calibration: str
    """Name of the text."""
    calibration_sha256: str
    n_texts: int
    n_tokens: int
    weight_bits: int
    """8, or 7: then products of uint8 and int8 do not saturate on processors without VNNI."""
    group_size: int | None
    """Input channels that share a scale where products have a scale a group; None: no product has."""
    products: list[QuantizedProduct]

    @property
    def has_scale_groups(self) -> bool:
        """Whether a product has a scale for each group of channels, which OpenVINO alone finds."""
        return any(product.mode is ProductMode.GROUP for product in self.products)


@dataclass(frozen=True, kw_only=True)
class EngineEntry:
    """One graph of the bundle and what it takes to run it."""

    name: str
    """`DIALECT.PRECISION[.RECIPE.ACTIVATION]`, such as `portable.int8.fast.uint8`; unique in the bundle."""
    dialect: Dialect
    precision: Precision
    recipe: str | None
    """`fast`, `precise` or a user's own name; None where nothing is quantized."""
    activation: str | None
    """Number format of quantized activations, `uint8`, `int8` or `e4m3`; None where there are none."""
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
    quantization: Quantization | None = None
    """How its products were quantized; None where they were not."""

    @property
    def is_quantized_around_fp16(self) -> bool:
        """Whether what is not quantized is fp16: what TensorRT takes, and a CPU computes in floats as a whole."""
        return self.quantization is not None and "tensorrt" in self.requires


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All of bundle.json."""

    schema: int
    """SCHEMA: what an older file lacks is filled in when it is read."""
    writer: str
    """Name and version of what wrote the bundle."""
    model: ModelEntry
    pooling: Setting
    normalize: Setting
    text: TextEntry
    files: list[FileEntry]
    engines: list[EngineEntry]
    similarity: Setting = DEFAULT_SIMILARITY
    """How the checkpoint's vectors are compared."""
    companions: list[str] = field(default_factory=list)
    """Files for other libraries that lie beside the others (bundle/companions.py); no size and no hash is checked."""

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
        return self.normalize.value == FLAGS[0]

    @property
    def similarity_function(self) -> Similarity:
        """The similarity as its enumeration."""
        return Similarity(self.similarity.value)

    def space(self, precision: Precision, graph: FileEntry) -> str:
        """The fingerprint of the vectors of an engine with this precision and `graph`: see `space_fingerprint`."""
        return space_fingerprint(
            weights_sha256=self.model.weights_sha256,
            tokenizer_sha256=self.file(self.text.tokenizer).sha256,
            text=self.text,
            pooling=self.pooling_mode,
            normalize=self.is_normalized,
            precision=precision,
            graph_sha256=graph.sha256 if precision in QUANTIZED else None,
        )

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
            data = loads(text)
        except ValueError as error:
            raise BundleError(path, f"not JSON ({error}): the file is damaged: remove it and export again") from None
        schema = data.get("schema") if isinstance(data, dict) else None
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            raise BundleError(path, "no schema version: this is not a bundle's manifest")
        if schema > SCHEMA:
            raise BundleError(
                path, f"schema {schema}, this reader knows up to {SCHEMA}: upgrade mexma-runtime, or export again"
            )
        if data.pop(DIGEST, None) != _digest(data):
            raise BundleError(
                path, f"its {DIGEST} is not that of its content: damaged or edited: remove it and export again"
            )
        manifest = read_value(cls, _upgraded(data, schema), path=path)
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
    graph_sha256: str | None,
) -> str:
    """16 hexadecimal digits that differ where vectors may differ by more than rounding of one precision.

    `graph_sha256`: of int8 and fp8 engines, whose vectors depend on every scale in the graph; None: of others.
    """
    prompt = text.prompts.get(text.default_prompt_name or "", "")
    settings = [text.max_tokens, text.lower_case, prompt, pooling, normalize, precision, graph_sha256]
    parts = [weights_sha256, tokenizer_sha256, *settings]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _upgraded(data: dict[str, Any], schema: int) -> dict[str, Any]:
    """What an older writer's `data` is in SCHEMA; what is no manifest is left as it is, to be refused."""
    engines = data.get("engines")
    if schema < 2 and isinstance(engines, list):
        engines = [{"quantization": None, **engine} if isinstance(engine, dict) else engine for engine in engines]
        data = {**data, "engines": engines}
    if schema < 4:
        data = {"similarity": dataclasses.asdict(DEFAULT_SIMILARITY), "companions": [], **data}
    return {**data, "schema": SCHEMA}


def _is_file_name(name: str) -> bool:
    try:
        return bool(name) and b"\0" not in name.encode()
    except UnicodeEncodeError:
        return False


def _check_references(manifest: Manifest, path: Path) -> None:
    files = [entry.name for entry in manifest.files]
    for name in (*files, *manifest.companions):
        if Path(name).name != name or name in (".", "..", LOCAL, MANIFEST_NAME) or not _is_file_name(name):
            raise BundleError(path, f"file name {name!r} is none of a file in the bundle's folder: refused")
    for what, setting, known in (
        ("pooling", manifest.pooling, list(Pooling)),
        ("normalize", manifest.normalize, FLAGS),
        ("similarity", manifest.similarity, list(Similarity)),
    ):
        if setting.value not in known:
            raise BundleError(path, f"{what}.value: expected one of {', '.join(known)}, got {setting.value!r}")
    needed = {manifest.text.tokenizer} | {
        name for engine in manifest.engines for name in (engine.file, *engine.weights)
    }
    if missing := sorted(needed - set(files)):
        raise BundleError(path, f"engines refer to files that the list of files lacks: {', '.join(missing)}")
    names = [engine.name for engine in manifest.engines]
    listed = [*files, *manifest.companions]
    if len(set(names)) != len(names) or len(set(listed)) != len(listed):
        raise BundleError(path, "an engine or a file is listed twice")
