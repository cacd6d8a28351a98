"""Stand-ins: checkpoints of a real architecture with seeded random weights, for speed, size and tests alone."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mexma_export.checkpoint.config import Family, ModelConfig
from mexma_export.checkpoint.standin_tokenizer import special_tokens_map, tokenizer_config, tokenizer_json
from mexma_export.checkpoint.standin_weights import choose_outliers, file_size, fills, write_weights
from mexma_runtime.errors import FileError, UsageError, file_errors
from mexma_runtime.types import Pooling

FORMAT_VERSION = 1
"""Raised whenever the same name and seed would give other bytes; the cache keeps versions apart."""
SPARE_BYTES = 64 << 20
"""Left free on the disk beside the weights; the other files take less than one MB of it."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What the stand-in of one name looks like."""

    model: ModelConfig
    pooling: Pooling = Pooling.CLS
    normalize: bool = False
    """modules.json ends with Normalize."""
    has_pooler: bool = True
    """The file holds the tensors of transformers' pooler. MEXMA's does not: 2,235,408,584 bytes leave no room."""


_XLM_R_LARGE = ModelConfig(
    family=Family.XLM_ROBERTA,
    n_layers=24,
    hidden_size=1024,
    n_heads=16,
    ffn_size=4096,
    vocab_size=250_002,
    n_positions=514,
    n_token_types=1,
    padding_id=1,
    layer_norm_epsilon=1e-5,
)
_TINY = replace(_XLM_R_LARGE, n_layers=3, hidden_size=64, n_heads=4, ffn_size=128, vocab_size=8192)
_TINY_BERT = replace(_TINY, family=Family.BERT, n_positions=512, n_token_types=2, layer_norm_epsilon=1e-12)

STANDINS: Mapping[str, Architecture] = MappingProxyType(
    {
        "mexma": Architecture(model=_XLM_R_LARGE, has_pooler=False),
        "base": Architecture(model=replace(_XLM_R_LARGE, n_layers=12, hidden_size=768, n_heads=12, ffn_size=3072)),
        "small": Architecture(model=replace(_XLM_R_LARGE, n_layers=6, hidden_size=384, n_heads=12, ffn_size=1536)),
        "tiny": Architecture(model=_TINY),
        "tiny-bert": Architecture(model=_TINY_BERT, pooling=Pooling.MEAN, normalize=True),
    }
)
"""Name -> architecture. Where the vocabulary is XLM-R's, the tokenizer uses its first 8,000 ids."""


def write_standin(
    name: str,
    out: Path,
    *,
    seed: int = 0,
    outliers: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the stand-in `name` as the folder `out`, which must not exist or be empty; returns it, absolute.

    The folder loads in transformers and sentence-transformers. The same name, seed and `outliers` give the same bytes,
    with one version of NumPy, whose normal deviates they are. `progress` gets two numbers: the bytes of weights
    written so far, and in all. What is written lies beside `out` until it is complete, and is removed where it never
    will be. Raises UsageError for an unknown name, for an `out` that holds something, and where the disk is too full;
    FileError where it cannot be written.
    """
    architecture = _architecture(name)
    out = out.resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out}: expected nothing or an empty folder there: choose another --out, or remove it")
    model = architecture.model
    planted = choose_outliers(model, seed) if outliers else None
    tensors = fills(model, has_pooler=architecture.has_pooler, outliers=planted)
    with _published(out, file_size(tensors)) as folder:
        for path, content in _small_files(name, architecture, seed=seed, outliers=outliers).items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(content)
        write_weights(folder / "model.safetensors", tensors, seed=seed, progress=progress)
    return out


def cached_standin(
    name: str,
    *,
    seed: int = 0,
    outliers: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The folder of a stand-in in the user's cache, written now if it is not there yet. For `standin:NAME`.

    The cache is $MEXMA_CACHE, else $XDG_CACHE_HOME/mexma-runtime, else ~/.cache/mexma-runtime. Raises what
    `write_standin` raises.
    """
    _architecture(name)
    folder = _cache() / "standins" / f"{name}{'-outliers' if outliers else ''}-seed{seed}-v{FORMAT_VERSION}"
    if not folder.is_dir():
        try:
            write_standin(name, folder, seed=seed, outliers=outliers, progress=progress)
        except (FileError, UsageError):
            if not folder.is_dir():  # else another process was faster, and wrote the same
                raise
    return folder


def _architecture(name: str) -> Architecture:
    if name not in STANDINS:
        raise UsageError(f"no stand-in is called {name!r}: there are {', '.join(STANDINS)}")
    return STANDINS[name]


def _cache() -> Path:
    if own := os.environ.get("MEXMA_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "mexma-runtime"


@contextlib.contextmanager
def _published(out: Path, n_bytes: int) -> Iterator[Path]:
    """A new folder beside `out` that becomes `out` if the block succeeds, and is removed if it does not.

    It is locked while its writer lives, so that what a killed one left behind is known and removed here.
    """
    with file_errors(out.parent, "cannot be made a folder"):
        out.parent.mkdir(parents=True, exist_ok=True)
    for left_behind in out.parent.glob(f".{out.name}.*.partial"):
        with contextlib.suppress(OSError), _locked(left_behind):
            shutil.rmtree(left_behind)
    needed, usage = n_bytes + SPARE_BYTES, shutil.disk_usage(out.parent)
    if usage.total and (free := usage.free) < needed:  # some file systems do not say
        raise UsageError(
            f"{out}: needs {needed / 1e9:.2f} GB of free disk, {free / 1e9:.2f} GB are there: free some, or choose "
            "another place. Nothing was written"
        )
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex}.partial")
    with file_errors(out, "cannot be written"), contextlib.ExitStack() as stack:
        partial.mkdir()
        stack.callback(shutil.rmtree, partial, ignore_errors=True)
        with contextlib.suppress(OSError):  # a file system without locks, where nothing is removed either
            stack.enter_context(_locked(partial))
        yield partial
        with file_errors(out, "cannot be put there"):
            partial.rename(out)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on `folder`; OSError where another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _small_files(name: str, architecture: Architecture, *, seed: int, outliers: bool) -> dict[str, bytes]:
    """Everything but the weights: path in the folder -> content."""
    model = architecture.model
    is_bert = model.family is Family.BERT
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * architecture.normalize
    contents: dict[str, Any] = {
        "config.json": {
            "architectures": ["BertModel" if is_bert else "XLMRobertaModel"],
            "attention_probs_dropout_prob": 0.1,
            "bos_token_id": 0,
            "dtype": "float32",
            "eos_token_id": 2,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "hidden_size": model.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": model.ffn_size,
            "layer_norm_eps": model.layer_norm_epsilon,
            "max_position_embeddings": model.n_positions,
            "model_type": model.family.value,
            "num_attention_heads": model.n_heads,
            "num_hidden_layers": model.n_layers,
            "pad_token_id": model.padding_id,
            "position_embedding_type": "absolute",
            "type_vocab_size": model.n_token_types,
            "vocab_size": model.vocab_size,
        },
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": model.hidden_size,
            "pooling_mode_cls_token": architecture.pooling is Pooling.CLS,
            "pooling_mode_mean_tokens": architecture.pooling is Pooling.MEAN,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        "sentence_bert_config.json": {"max_seq_length": model.max_tokens, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "tokenizer_config.json": tokenizer_config(
            ["input_ids", "token_type_ids", "attention_mask"] if is_bert else ["input_ids", "attention_mask"]
        ),
        "special_tokens_map.json": special_tokens_map(),
    }
    files = {path: (json.dumps(content, indent=2) + "\n").encode() for path, content in contents.items()}
    files["tokenizer.json"] = tokenizer_json()
    files["README.md"] = (
        f"# {name}: a stand-in\n\n"
        f"The weights in this folder are random (seed {seed}{', with planted outliers' if outliers else ''}, format "
        f"{FORMAT_VERSION}).\nThe architecture is real and the vectors mean nothing: use it for speed, size and tests, "
        "never for quality.\nWritten by mexma-runtime.\n"
    ).encode()
    return files
