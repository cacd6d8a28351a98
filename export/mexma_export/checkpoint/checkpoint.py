"""A checkpoint: config, tokenizer, settings and lazily read tensors, checked as a whole before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mexma_export.checkpoint.config import ModelConfig, read_config
from mexma_export.checkpoint.naming import match_tensors
from mexma_export.checkpoint.sentence import SentenceSettings, read_object, read_settings
from mexma_export.checkpoint.sources import Source
from mexma_export.checkpoint.tensors import TensorInfo, read_headers, weight_files
from mexma_export.checkpoint.vocabulary import check_vocabulary
from mexma_runtime.errors import CheckpointError
from mexma_runtime.types import Pooling


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One model, ready to be written: `tensors` maps our names to where each tensor lies."""

    source: Source
    config: ModelConfig
    settings: SentenceSettings
    tensors: Mapping[str, TensorInfo]


def load_checkpoint(source: Source, *, pooling: Pooling | None = None) -> Checkpoint:
    """Read everything but the weights' values; CheckpointError lists all problems of the config, then of all else.

    `pooling` overrides what the checkpoint's files say.
    """
    config_path = source.folder / "config.json"
    if not config_path.is_file():
        raise CheckpointError(source.folder, ["no config.json: expected a checkpoint in the hub's layout"])
    config, problems = read_config(read_object(config_path))
    if config is None:
        raise CheckpointError(source.folder, problems)
    settings, settings_problems = read_settings(source.folder, config, model_id=source.model_id, asked_pooling=pooling)
    found, file_problems = read_headers(weight_files(source.folder))
    tensors, tensor_problems = match_tensors(config, found)
    if settings is None or settings_problems or file_problems or tensor_problems:
        raise CheckpointError(source.folder, settings_problems + file_problems + tensor_problems)
    check_vocabulary(source.tokenizer, config.vocab_size)
    return Checkpoint(source=source, config=config, settings=settings, tensors=tensors)
