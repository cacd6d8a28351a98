"""What sentence-transformers' files say of a checkpoint: pooling, normalisation, the token limit, prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mexma_export.checkpoint.config import ModelConfig
from mexma_export.checkpoint.json_files import read_json, read_object
from mexma_export.checkpoint.settings_keys import (
    HUB_OPTIONS,
    MODULE,
    NORMALIZE,
    POOLING,
    PROCESSOR,
    SENTENCE_TRANSFORMERS,
    TOKENIZER_OPTIONS,
    TRANSFORMER,
    is_text,
    judge_keys,
)
from mexma_runtime.bundle.companions import SETTINGS
from mexma_runtime.bundle.manifest import DEFAULT_SIMILARITY, PROMPTS, Setting
from mexma_runtime.types import Pooling

KNOWN_POOLING = {"facebook/MEXMA": Pooling.CLS}
"""Checkpoints without pooling files whose model card says how to pool."""

TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""What sentence-transformers has called the settings of its Transformer module; the first that says something holds."""

MODULES = {
    f"sentence_transformers.{name}": kind
    for kind, names in {
        "Transformer": "models.Transformer models.Transformer.Transformer base.modules.Transformer "
        "base.modules.transformer.Transformer sentence_transformer.modules.Transformer",
        "Pooling": "models.Pooling models.Pooling.Pooling models.pooling.Pooling sentence_transformer.modules.Pooling "
        "sentence_transformer.modules.pooling.Pooling",
        "Normalize": "models.Normalize models.Normalize.Normalize base.modules.Normalize "
        "base.modules.normalize.Normalize sentence_transformer.modules.Normalize "
        "sentence_transformer.modules.normalize.Normalize",
    }.items()
    for name in names.split()
}
"""What modules.json may call the modules that are written, by version; a class of another name is another class."""

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")

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
    similarity: Setting = DEFAULT_SIMILARITY
    tokenizer_options: Mapping[str, Any] = field(default_factory=dict)
    """Keys of tokenizer_config.json that have another value here."""
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
        return (PROMPTS | self.prompts)[self.default_prompt_name] if self.default_prompt_name is not None else ""


class _Findings:
    """What is wrong with the files, and what a user should hear."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def judge(self, where: str, content: Mapping[str, Any], table: Mapping[str, Any], prefix: str = "") -> None:
        """Hold the keys of a file against their table."""
        problems, warnings = judge_keys(where, content, table, prefix=prefix)
        self.problems += problems
        self.warnings += warnings


def read_settings(
    folder: Path, config: ModelConfig, *, model_id: str, asked_pooling: Pooling | None
) -> tuple[SentenceSettings | None, list[str]]:
    """Settings of a checkpoint folder, and all problems found; the former is None where one is fatal."""
    found = _Findings()
    modules = read_json(folder / "modules.json")
    _refuse_other_parts(folder, found)
    pooling_folder, normalize = _read_modules(folder, modules, found)
    name, transformer = _transformer_settings(folder) if modules is not None else (TRANSFORMER_FILES[0], {})
    found.judge(name, transformer, TRANSFORMER)
    tokenizer_options = _tokenizer_options(name, transformer, found)
    pooling = _choose_pooling(folder, pooling_folder, model_id, asked_pooling, found)
    if modules is None and pooling is not None and pooling.value != Pooling.MEAN:
        found.warnings.append(
            "this checkpoint has no modules.json, so sentence-transformers mean-pools it; this bundle pools "
            f"{pooling.value} ({pooling.source}). Vectors made through sentence-transformers before are another space"
        )
    max_tokens, source = _read_limit(folder, config, name, transformer, tokenizer_options, found)
    config_file = read_object(folder / SETTINGS) if modules is not None else {}
    prompts, default_prompt = _read_prompts(config_file, found)
    if pooling is None or found.problems:
        return None, found.problems
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
        similarity=_similarity(config_file),
        tokenizer_options=tokenizer_options,
        warnings=tuple(found.warnings),
    )
    return settings, found.problems


def _refuse_other_parts(folder: Path, found: _Findings) -> None:
    """What lies beside the weights and would change them, or what they are given."""
    if (folder / "adapter_config.json").is_file():
        found.problems.append(
            "adapter_config.json: an adapter that transformers loads over the weights: merge it into them by peft "
            "(merge_and_unload(), then save_pretrained()), or take it away to export the model without it"
        )
    for name in PROCESSOR_FILES:
        # Their other keys are of images and sound.
        there = read_object(folder / name)
        found.judge(name, {key: there[key] for key in PROCESSOR if key in there}, PROCESSOR)


def _read_modules(folder: Path, modules: Any, found: _Findings) -> tuple[str | None, bool]:
    """The pooling module's folder and whether vectors are normalised."""
    if modules is None:
        return None, False
    try:
        kinds = [(str(module["type"]), str(module["path"]), str(module["name"])) for module in modules]
    except (TypeError, KeyError):
        found.problems.append("modules.json: expected a list of objects with name, type and path")
        return None, False
    for module in modules:
        found.judge("modules.json", module, MODULE)
    names = [MODULES.get(kind) for kind, _, _ in kinds]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        found.problems.append(
            f"modules.json: {' + '.join(MODULES.get(kind, kind) for kind, _, _ in kinds)}: only sentence-transformers' "
            "own Transformer + Pooling, with or without Normalize, are written"
        )
        return None, False
    if len({name for _, _, name in kinds}) < len(kinds):
        found.problems.append("modules.json: two modules of one name, of which sentence-transformers keeps the last")
    if Path(kinds[0][1]) != Path():
        found.problems.append(f"modules.json: the Transformer lies in {kinds[0][1]!r}; expected the folder itself")
    for _, path, _ in kinds[1:]:
        if Path(path) == Path() or Path(path).is_absolute() or ".." in Path(path).parts or "\0" in path:
            found.problems.append(f"modules.json: path {path!r}: expected a folder below the checkpoint's")
            return None, False
    if len(kinds) == 3:
        path = f"{kinds[2][1]}/config.json"
        there = read_object(folder / path)
        found.judge(path, {key: there[key] for key in NORMALIZE if key in there}, NORMALIZE)
    return kinds[1][1], "Normalize" in names


def _choose_pooling(
    folder: Path,
    pooling_folder: str | None,
    model_id: str,
    asked: Pooling | None,
    found: _Findings,
) -> Setting | None:
    if asked is not None:
        return Setting(value=asked, source="asked for (--pooling)")
    if pooling_folder is not None:
        return _read_pooling(folder, f"{pooling_folder}/config.json", found)
    if model_id in KNOWN_POOLING:
        return Setting(value=KNOWN_POOLING[model_id], source=f"the model card of {model_id}")
    if not found.problems:  # which else say what is wrong with modules.json
        found.problems.append(
            "no modules.json with a pooling, and it is never guessed: say --pooling cls or --pooling mean"
        )
    return None


def _read_pooling(folder: Path, path: str, found: _Findings) -> Setting | None:
    config = read_object(folder / path)
    found.judge(path, config, POOLING)
    named = config.get("pooling_mode")  # how sentence-transformers 6 writes it
    modes: list[Any] = named if isinstance(named, list) else [named]
    if named is None:
        keys = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        modes = [_POOLING_MODES.get(key, key) for key in keys]
        if keys and "pooling_mode_mean_tokens" not in config:
            found.problems.append(
                f"{path}: no pooling_mode_mean_tokens, which is true before sentence-transformers 5.4 and false since: "
                "say which"
            )
    if len(modes) == 1 and modes[0] in list(Pooling):
        return Setting(value=modes[0], source=path)
    found.problems.append(f"{path}: pooling {' + '.join(map(str, modes)) or 'not said'}: only cls or mean is written")
    return None


def _transformer_settings(folder: Path) -> tuple[str, dict[str, Any]]:
    """The file that holds them, and they."""
    for name in TRANSFORMER_FILES:
        if settings := read_object(folder / name):
            return name, settings
    return TRANSFORMER_FILES[0], {}


def _tokenizer_options(name: str, transformer: Mapping[str, Any], found: _Findings) -> dict[str, Any]:
    """What stands in place of keys of tokenizer_config.json; sentence-transformers 6 has a new name for the old."""
    given = [key for key in ("tokenizer_args", "processor_kwargs") if transformer.get(key)]
    if len(given) > 1:
        found.problems.append(f"{name}: {' and '.join(given)} are two names for one thing: keep one")
    for key in given:
        options = transformer[key]
        if not isinstance(options, dict):
            found.problems.append(f"{name}: {key} {options!r}: expected an object")
            continue
        options = {option: value for option, value in options.items() if option not in HUB_OPTIONS}
        found.judge(name, options, TOKENIZER_OPTIONS, prefix=f"{key}.")
        return options
    return {}


def _read_limit(
    folder: Path,
    config: ModelConfig,
    name: str,
    transformer: Mapping[str, Any],
    tokenizer_options: Mapping[str, Any],
    found: _Findings,
) -> tuple[int, str]:
    """The most tokens of a text, special ones included, and the file that says so."""
    asked, of_tokenizer = transformer.get("max_seq_length"), tokenizer_options.get("model_max_length")
    key = "max_seq_length" if of_tokenizer is None else "model_max_length"
    if of_tokenizer is not None:
        limit, source = of_tokenizer, name
        if asked not in (None, of_tokenizer):
            found.warnings.append(
                f"{name}: model_max_length {of_tokenizer} and max_seq_length {asked}: texts are cut at the former, as "
                "in sentence-transformers since 5.4; before, at the latter"
            )
    elif asked is not None:
        limit, source = asked, name
    else:
        limit, source = _tokenizer_limit(folder, config)
    if type(limit) is int and limit > config.max_tokens:
        found.warnings.append(
            f"{source}: {key} {limit}: the position table serves {config.max_tokens}, at which texts are cut; "
            "sentence-transformers fails at longer ones"
        )
        limit, source = config.max_tokens, "config.json"
    if type(limit) is not int or not 3 <= limit <= config.max_tokens:
        found.problems.append(
            f"{source}: a limit of {limit!r} tokens; the position table serves 3 to {config.max_tokens}"
        )
    return limit, source


def _tokenizer_limit(folder: Path, config: ModelConfig) -> tuple[Any, str]:
    """The lesser of the tokenizer's limit, where it has one (1e30 stands for none), and the positions'."""
    settings = read_object(folder / "tokenizer_config.json")
    limit = settings.get("model_max_length", settings.get("max_len"))
    if limit is None or (isinstance(limit, int | float) and limit >= config.max_tokens):
        return config.max_tokens, "config.json"
    return limit, "tokenizer_config.json"


def _similarity(config: Mapping[str, Any]) -> Setting:
    value = config.get("similarity_fn_name")
    return DEFAULT_SIMILARITY if value is None else Setting(value=value, source=SETTINGS)


def _read_prompts(config: Mapping[str, Any], found: _Findings) -> tuple[dict[str, str], str | None]:
    found.judge(SETTINGS, config, SENTENCE_TRANSFORMERS)
    prompts = config.get("prompts") or {}
    default = config.get("default_prompt_name")
    if isinstance(prompts, dict):
        prompts = {name: "" if text is None else text for name, text in prompts.items()}
        if all(map(is_text, (*prompts, *prompts.values()))) and default in (None, *PROMPTS, *prompts):
            return prompts, default
    found.problems.append(f"{SETTINGS}: prompts: expected texts by name, the default among them")
    return {}, None
