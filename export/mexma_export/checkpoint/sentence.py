"""What sentence-transformers' files say of a checkpoint: pooling, normalisation, the token limit, prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mexma_export.checkpoint.config import ModelConfig
from mexma_runtime.bundle.manifest import Setting
from mexma_runtime.errors import CheckpointError
from mexma_runtime.types import Pooling

KNOWN_POOLING = {"facebook/MEXMA": Pooling.CLS}
"""Checkpoints without pooling files whose model card says how to pool."""

TRANSFORMER_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_camembert_config.json",
    "sentence_xlm-roberta_config.json",
)
"""What sentence-transformers has called the settings of its Transformer module; the first that says something holds."""

_POOLING_MODES = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


@dataclass(frozen=True, kw_only=True)
class SentenceSettings:
    """Everything outside the encoder that changes the vectors."""

    pooling: Setting
    normalize: Setting
    max_tokens: int
    max_tokens_source: str
    lower_case: bool
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    warnings: tuple[str, ...] = ()
    """What a user should hear at export."""

    @property
    def pooling_mode(self) -> Pooling:
        """The pooling as its enumeration."""
        return Pooling(self.pooling.value)

    @property
    def is_normalized(self) -> bool:
        """Whether the checkpoint's own vectors have length 1."""
        return self.normalize.value == "true"

    @property
    def default_prompt(self) -> str:
        """What stands before every text unless asked otherwise; mostly nothing."""
        return self.prompts[self.default_prompt_name] if self.default_prompt_name is not None else ""


def read_json(path: Path) -> Any:
    """The JSON of a file; None where there is no file; CheckpointError where it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CheckpointError(path, [f"not JSON: {error}"]) from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; {} where there is no file; CheckpointError where it is something else."""
    value = read_json(path)
    if value is not None and not isinstance(value, dict):
        raise CheckpointError(path, [f"expected a JSON object, got {type(value).__name__}"])
    return value or {}


def read_settings(
    folder: Path, config: ModelConfig, *, model_id: str, asked_pooling: Pooling | None
) -> tuple[SentenceSettings | None, list[str]]:
    """Settings of a checkpoint folder, and all problems found; the former is None where one is fatal."""
    problems: list[str] = []
    warnings: list[str] = []
    modules = read_json(folder / "modules.json")
    pooling_folder, normalize = _read_modules(modules, problems)
    transformer_file, transformer = _transformer_settings(folder) if modules is not None else ("", {})
    pooling = _choose_pooling(folder, pooling_folder, model_id, asked_pooling, problems)
    if modules is None and pooling is not None and pooling.value != Pooling.MEAN:
        warnings.append(
            "this checkpoint has no modules.json, so sentence-transformers mean-pools it; this bundle pools "
            f"{pooling.value} ({pooling.source}). Vectors made through sentence-transformers before are another space"
        )
    if (max_tokens := transformer.get("max_seq_length")) is not None:
        source = transformer_file
    else:
        max_tokens, source = _tokenizer_limit(folder, config)
    if type(max_tokens) is not int or not 3 <= max_tokens <= config.max_tokens:
        problems.append(
            f"{source}: a limit of {max_tokens!r} tokens; the position table serves 3 to {config.max_tokens}"
        )
    prompts, default_prompt = _read_prompts(folder, problems) if modules is not None else ({}, None)
    if pooling is None or problems:
        return None, problems
    settings = SentenceSettings(
        pooling=pooling,
        normalize=Setting(
            value="true" if normalize else "false",
            source="modules.json" if modules is not None else "no modules.json: the model card's vectors",
        ),
        max_tokens=max_tokens,
        max_tokens_source=source,
        lower_case=bool(transformer.get("do_lower_case")),
        prompts=prompts,
        default_prompt_name=default_prompt,
        warnings=tuple(warnings),
    )
    return settings, problems


def _read_modules(modules: Any, problems: list[str]) -> tuple[str | None, bool]:
    """The pooling module's folder and whether vectors are normalised."""
    if modules is None:
        return None, False
    try:
        kinds = [(str(module["type"]).rsplit(".", 1)[-1], str(module["path"])) for module in modules]
    except (TypeError, KeyError):
        problems.append("modules.json: expected a list of objects with type and path")
        return None, False
    names = [kind for kind, _ in kinds]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        problems.append(
            f"modules.json: {' + '.join(names)}: only Transformer + Pooling, with or without Normalize, are written"
        )
        return None, False
    if kinds[0][1]:
        problems.append(f"modules.json: the Transformer lies in {kinds[0][1]!r}; expected the folder itself")
    return kinds[1][1], "Normalize" in names


def _choose_pooling(
    folder: Path, pooling_folder: str | None, model_id: str, asked: Pooling | None, problems: list[str]
) -> Setting | None:
    if asked is not None:
        return Setting(value=asked, source="asked for (--pooling)")
    if pooling_folder is not None:
        path = f"{pooling_folder}/config.json"
        config = read_object(folder / pooling_folder / "config.json")
        if config.get("include_prompt") is False:
            problems.append(f"{path}: include_prompt is false: pooling without the prompt's tokens is not written")
        named = config.get("pooling_mode")  # how sentence-transformers 6 writes it
        modes: list[Any] = named if isinstance(named, list) else [named]
        if named is None:
            keys = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
            modes = [_POOLING_MODES.get(key, key) for key in keys]
        if len(modes) == 1 and modes[0] in list(Pooling):
            return Setting(value=modes[0], source=path)
        problems.append(f"{path}: pooling {' + '.join(map(str, modes)) or 'not said'}: only cls or mean is written")
        return None
    if model_id in KNOWN_POOLING:
        return Setting(value=KNOWN_POOLING[model_id], source=f"the model card of {model_id}")
    if not problems:  # which else say what is wrong with modules.json
        problems.append("no modules.json with a pooling, and it is never guessed: say --pooling cls or --pooling mean")
    return None


def _transformer_settings(folder: Path) -> tuple[str, dict[str, Any]]:
    """The file that holds them, and they."""
    for name in TRANSFORMER_FILES:
        if settings := read_object(folder / name):
            return name, settings
    return TRANSFORMER_FILES[0], {}


def _tokenizer_limit(folder: Path, config: ModelConfig) -> tuple[Any, str]:
    """The lesser of the tokenizer's limit, where it has one (1e30 stands for none), and the positions'."""
    limit = read_object(folder / "tokenizer_config.json").get("model_max_length")
    if limit is None or (isinstance(limit, int | float) and limit >= config.max_tokens):
        return config.max_tokens, "config.json"
    return limit, "tokenizer_config.json"


def _read_prompts(folder: Path, problems: list[str]) -> tuple[dict[str, str], str | None]:
    config = read_object(folder / "config_sentence_transformers.json")
    prompts = config.get("prompts") or {}
    default = config.get("default_prompt_name")
    is_named = isinstance(prompts, dict) and all(isinstance(text, str) for text in prompts.values())
    if is_named and default in (None, *prompts):
        return prompts, default
    problems.append("config_sentence_transformers.json: prompts: expected texts by name, the default among them")
    return {}, None
