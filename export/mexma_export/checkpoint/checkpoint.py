"""A checkpoint: config, tokenizer, settings and lazily read tensors, checked as a whole before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mexma_export.checkpoint.config import ModelConfig, read_config
from mexma_export.checkpoint.json_files import read_object
from mexma_export.checkpoint.naming import match_tensors
from mexma_export.checkpoint.sentence import SentenceSettings, read_settings
from mexma_export.checkpoint.settings_keys import CONFIG, judge_keys
from mexma_export.checkpoint.sources import Source
from mexma_export.checkpoint.tensors import TensorInfo, read_headers, weight_files
from mexma_export.checkpoint.tokenizer import read_tokenizer, try_tokenizer
from mexma_runtime.errors import CheckpointError
from mexma_runtime.text.tokenizer import TokenizerSpec
from mexma_runtime.types import Pooling


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One model, ready to be written: `tensors` maps our names to where each tensor lies."""

    source: Source
    config: ModelConfig
    settings: SentenceSettings
    tensors: Mapping[str, TensorInfo]
    tokenizer: bytes
    """tokenizer.json as the bundle gets it: see `read_tokenizer`."""
    warnings: tuple[str, ...]
    """What a user should hear at export."""


def load_checkpoint(source: Source, *, pooling: Pooling | None = None) -> Checkpoint:
    """Read everything but the weights' values; CheckpointError lists all problems of the config, then of all else.

    `pooling` overrides what the checkpoint's files say.
    """
    config_path = source.folder / "config.json"
    if not config_path.is_file():
        raise CheckpointError(source.folder, ["no config.json: expected a checkpoint in the hub's layout"])
    described = read_object(config_path)
    config, problems = read_config(described)
    if config is None:
        raise CheckpointError(source.folder, problems)
    settings, problems = read_settings(source.folder, config, model_id=source.model_id, asked_pooling=pooling)
    tokenizer = read_tokenizer(
        source.tokenizer,
        config,
        model_type=described["model_type"],
        overrides=settings.tokenizer_options if settings else {},
    )
    found, file_problems = read_headers(weight_files(source.folder))
    if not found and not file_problems:
        file_problems = ["the files of the weights hold no tensors"]
    # Of files that cannot be read at all, nothing else is worth telling.
    tensors, tensor_problems = match_tensors(config, found) if found else ({}, [])
    problems = [*problems, *tokenizer.problems, *file_problems, *tensor_problems]
    if settings is None or problems:
        raise CheckpointError(source.folder, problems)
    if tokenizer.largest_id >= config.vocab_size:
        reason = f"gives ids up to {tokenizer.largest_id}, but config.json has {config.vocab_size} embeddings"
        raise CheckpointError(source.tokenizer, [reason])
    spec = TokenizerSpec(max_tokens=settings.max_tokens, lower_case=settings.lower_case)
    if problems := try_tokenizer(tokenizer.json, spec):
        raise CheckpointError(source.folder, problems)
    warnings = judge_keys("config.json", described, CONFIG)[1] + [*settings.warnings, *tokenizer.warnings]
    return Checkpoint(
        source=source,
        config=config,
        settings=settings,
        tensors=tensors,
        tokenizer=tokenizer.json,
        warnings=tuple(dict.fromkeys(warnings)),
    )
