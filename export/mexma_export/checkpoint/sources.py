"""Where a checkpoint comes from: a folder, the hub, or a stand-in made on the spot. All of them end as a folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mexma_runtime.bundle.manifest import MANIFEST_NAME
from mexma_runtime.errors import MissingDependencyError, SourceError, UsageError

STANDIN_PREFIX = "standin:"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_ELSEWHERE = {"facebook/MEXMA": "FacebookAI/xlm-roberta-large"}
"""Checkpoints whose repository may lack a tokenizer, and the repository that their authors load it from."""

_HUB_CACHE = re.compile(r"/models--([^/]+)/snapshots/([0-9a-f]{40})$")
_TOKENIZER_FILES = ["tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "config.json"]
"""transformers reads the others beside tokenizer.json when it loads the reference's tokenizer."""
_CHECKPOINT_FILES = ["*.json", "*.safetensors", "1_Pooling/*"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint's folder and what is known of its origin."""

    folder: Path
    model_id: str
    revision: str | None
    """The commit on the hub, where it came from there."""
    tokenizer: Path
    """The tokenizer.json that belongs to it."""
    notes: tuple[str, ...] = ()
    """What a user should hear."""


def resolve_source(
    source: str,
    *,
    revision: str | None = None,
    tokenizer: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Source:
    """Find or fetch the checkpoint `source`: a local folder, `standin:NAME`, or an id on the hub.

    `tokenizer` names another place for tokenizer.json: a file, a folder or an id on the hub. Raises SourceError
    where something cannot be found or fetched, UsageError where the words contradict each other.
    """
    folder, model_id, commit = _find_folder(source, revision, progress)
    _refuse_folder_above(folder)
    _refuse_bundle(folder)
    notes: list[str] = []
    if tokenizer is not None:
        path = _find_tokenizer(tokenizer)
    elif (folder / TOKENIZER_FILE).is_file():
        path = folder / TOKENIZER_FILE
    elif model_id in TOKENIZER_ELSEWHERE:
        elsewhere = TOKENIZER_ELSEWHERE[model_id]
        notes.append(f"{model_id} holds no tokenizer.json: taking the one of {elsewhere}, as its authors do")
        path = _find_tokenizer(elsewhere)
    else:
        raise SourceError(
            f"{folder}: no {TOKENIZER_FILE}: name a file, a folder or a hub id that has the model's tokenizer with "
            "--tokenizer (for models that share XLM-R's vocabulary: --tokenizer FacebookAI/xlm-roberta-large)"
        )
    return Source(folder=folder, model_id=model_id, revision=commit, tokenizer=path, notes=tuple(notes))


def _refuse_folder_above(folder: Path) -> None:
    """SourceError where the model lies in a folder below, as in the hub's cache and in an old layout."""
    if (folder / "config.json").is_file():
        return
    if (folder / "snapshots").is_dir():
        commits = ", ".join(sorted(path.name for path in (folder / "snapshots").iterdir())) or "none"
        raise SourceError(
            f"{folder}: a repository of the hub's cache: name {folder}/snapshots/COMMIT (there: {commits})"
        )
    for path in sorted(folder.glob("0_*/config.json")):
        raise SourceError(
            f"{folder}: the model lies in {path.parent.name}, an old layout of sentence-transformers: load it there, "
            "and save_pretrained() it again"
        )


def _refuse_bundle(folder: Path) -> None:
    """SourceError where `folder` holds a bundle and no weights of a checkpoint."""
    if (folder / MANIFEST_NAME).is_file() and not any(folder.glob("*.safetensors")):
        raise SourceError(f"{folder}: a bundle, which an export makes: name the checkpoint that it was made from")


def _find_folder(
    source: str, revision: str | None, progress: Callable[[int, int], None] | None
) -> tuple[Path, str, str | None]:
    is_hub_id = not source.startswith(STANDIN_PREFIX) and not Path(source).is_dir()
    if revision is not None and not is_hub_id:
        raise UsageError(f"--revision {revision} belongs to a checkpoint on the hub, and {source} is not one")
    if source.startswith(STANDIN_PREFIX):
        from mexma_export.checkpoint.standin import cached_standin

        return cached_standin(source.removeprefix(STANDIN_PREFIX), progress=progress), source, None
    if not is_hub_id:
        folder = Path(source).resolve()
        if cached := _HUB_CACHE.search(folder.as_posix()):  # the hub's own cache names what it holds
            return folder, cached[1].replace("--", "/"), cached[2]
        return folder, folder.name, None
    ways_on = (
        "Two ways on:\n"
        f"  - a local folder in the hub's layout:  mexma export /path/to/{source.rsplit('/', 1)[-1]} --out DIR\n"
        "  - a stand-in of the same shape, with random weights, to try speed and size:  "
        "mexma export standin:mexma --out DIR"
    )
    return _download(source, revision, _CHECKPOINT_FILES, ways_on=ways_on)


def _find_tokenizer(place: str) -> Path:
    path = Path(place)
    if path.name == TOKENIZER_FILE and path.is_file():
        return path
    ways_on = f"The model's tokenizer can be given by --tokenizer: a folder that has {TOKENIZER_FILE}, or that file"
    folder = path if path.exists() else _download(place, None, _TOKENIZER_FILES, ways_on=ways_on)[0]
    if not (folder / TOKENIZER_FILE).is_file():  # transformers, the reference, finds it by this name alone
        raise SourceError(f"{place}: expected a file called {TOKENIZER_FILE}, or a folder or a hub id that has it")
    return folder / TOKENIZER_FILE


def _download(
    model_id: str, revision: str | None, patterns: list[str], *, ways_on: str
) -> tuple[Path, str, str | None]:
    """Fetch files of a hub repository; its folder, its id and the commit that `revision` stands for."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        raise MissingDependencyError(
            "huggingface_hub", needed_for="a checkpoint from the hub", extra="export"
        ) from None
    try:
        folder = Path(huggingface_hub.snapshot_download(model_id, revision=revision, allow_patterns=patterns))
    except HFValidationError:
        raise SourceError(f"{model_id}: no such file or folder, and not an id on the hub (OWNER/NAME)") from None
    except GatedRepoError:
        raise SourceError(f"{model_id}: the hub asks for an agreement: accept it there, then `hf auth login`") from None
    except RevisionNotFoundError:
        raise SourceError(f"{model_id}: the hub has no revision {revision!r} of it") from None
    except RepositoryNotFoundError:
        raise SourceError(f"{model_id}: neither a local folder nor a repository that the hub shows you") from None
    except Exception as error:  # of the hub's client, or of the HTTP library below it, which differs by version
        raise SourceError(
            f"{model_id}: no such folder, no copy in the hub's cache, and the hub cannot be reached "
            f"({type(error).__name__}). {ways_on}"
        ) from error
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None
    return folder, model_id, commit
