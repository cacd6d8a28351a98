"""A checkpoint: config, tokenizer, settings and lazily read tensors, checked as a whole before anything is written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mexma_export.checkpoint.config import ModelConfig, read_config
from mexma_export.checkpoint.naming import IGNORED, expected_tensors, find_prefix
from mexma_export.checkpoint.sentence import SentenceSettings, read_object, read_settings
from mexma_export.checkpoint.sources import Source
from mexma_export.checkpoint.tensors import TensorInfo, chunks, read_headers, weight_files
from mexma_runtime.bundle.bundle import sha256_of
from mexma_runtime.errors import CheckpointError
from mexma_runtime.types import Pooling

FP16_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One model, ready to be written: `tensors` maps our names to where each tensor lies."""

    source: Source
    config: ModelConfig
    settings: SentenceSettings
    tensors: Mapping[str, TensorInfo]


@dataclass(frozen=True, kw_only=True)
class WeightStatistics:
    """What one pass over all weights found."""

    sha256: str
    """See `weights_sha256`."""
    largest: Mapping[str, float]
    """Our name -> the largest magnitude in the tensor."""


def load_checkpoint(source: Source, *, pooling: Pooling | None = None) -> Checkpoint:
    """Read everything but the weights' values; CheckpointError lists all problems at once.

    `pooling` overrides what the checkpoint's files say.
    """
    config_path = source.folder / "config.json"
    if not config_path.is_file():
        raise CheckpointError(source.folder, ["no config.json: expected a checkpoint in the hub's layout"])
    config, problems = read_config(read_object(config_path))
    if config is None:
        raise CheckpointError(source.folder, problems)
    settings, settings_problems = read_settings(source.folder, config, model_id=source.model_id, asked_pooling=pooling)
    tensors, tensor_problems = _match_tensors(config, weight_files(source.folder))
    if settings is None or settings_problems or tensor_problems:
        raise CheckpointError(source.folder, settings_problems + tensor_problems)
    _check_tokenizer(source.tokenizer, config)
    return Checkpoint(source=source, config=config, settings=settings, tensors=tensors)


def scan_weights(checkpoint: Checkpoint, *, progress: Callable[[int, int], None] | None = None) -> WeightStatistics:
    """Hash the files and look at every weight once; CheckpointError names each tensor that holds NaN or infinity."""
    largest: dict[str, float] = {}
    total = 2 * sum(file.stat().st_size for file in _files(checkpoint))
    done = 0
    for name, info in checkpoint.tensors.items():
        magnitude = 0.0
        for chunk in chunks(info):
            magnitude = float(np.maximum(magnitude, np.maximum(chunk.max(), -chunk.min())))  # NaN stays NaN
            done += chunk.nbytes
            if progress:
                progress(min(done, total), total)
        largest[name] = magnitude
    bad = [
        f"{checkpoint.tensors[n].name}: holds NaN or infinite weights" for n, m in largest.items() if not np.isfinite(m)
    ]
    if bad:
        raise CheckpointError(checkpoint.source.folder, bad)
    digest = weights_sha256(checkpoint)
    if progress:
        progress(total, total)
    return WeightStatistics(sha256=digest, largest=largest)


def weights_sha256(checkpoint: Checkpoint) -> str:
    """sha256 of model.safetensors; of the list of the parts' sums where there are several."""
    sums = [(file.name, sha256_of(file)) for file in _files(checkpoint)]
    if len(sums) == 1:
        return sums[0][1]
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in sums).encode()).hexdigest()


def check_fp16(checkpoint: Checkpoint, statistics: WeightStatistics) -> None:
    """Refuse a checkpoint whose weights leave the range of fp16, by name."""
    over = [
        f"{checkpoint.tensors[name].name}: its largest magnitude {magnitude:.6g} is over fp16's {FP16_LARGEST:.0f}: "
        "export fp32 instead"
        for name, magnitude in statistics.largest.items()
        if magnitude > FP16_LARGEST
    ]
    if over:
        raise CheckpointError(checkpoint.source.folder, over)


def _files(checkpoint: Checkpoint) -> list[Path]:
    return sorted({info.file for info in checkpoint.tensors.values()})


def _match_tensors(config: ModelConfig, files: list[Path]) -> tuple[dict[str, TensorInfo], list[str]]:
    found, problems = read_headers(files)
    wanted = expected_tensors(config)
    prefix = find_prefix(found, wanted)
    matched: dict[str, TensorInfo] = {}
    unclaimed = dict(found)
    for expected in wanted:
        name = prefix + expected.theirs
        info = unclaimed.pop(name, None)
        if info is None:
            problems.append(f"{name}: missing, expected {list(expected.shape)}")
            continue
        if info.shape != expected.shape:
            problems.append(f"{name}: expected {list(expected.shape)} from config.json, got {list(info.shape)}")
        if not info.is_readable:
            problems.append(f"{name}: expected weights in F32, F16 or BF16, got {info.dtype}")
        matched[expected.ours] = info
    for name in unclaimed:
        if not IGNORED.fullmatch(name.removeprefix(prefix)):
            problems.append(f"{name}: unexpected: the graph has no place for it")
    return matched, problems


def _check_tokenizer(path: Path, config: ModelConfig) -> None:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise CheckpointError(path, [f"the tokenizers library cannot read it: {error}"]) from None
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= config.vocab_size:
        raise CheckpointError(path, [f"gives ids up to {largest}, but config.json has {config.vocab_size} embeddings"])
