"""all-MiniLM-L6-v2 with its trained weights and prompts that it does not have, so that a query is not a document."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mexma_export.bundle.pipeline import export
from mexma_export.bundle.request import ExportRequest
from mexma_export.checkpoint.sources import resolve_source
from mexma_runtime import Encoder
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.companions import with_companions, write_companions
from mexma_runtime.bundle.manifest import MANIFEST_NAME
from mexma_runtime.types import Precision

PROMPTS = {"query": "query: ", "document": "passage: "}

MakeBundle = Callable[..., Path]
Embed = Callable[[list[str]], Awaitable[Any]]
CancelOnce = Callable[[Embed], list[str]]


@pytest.fixture(scope="session")
def minilm_bundle(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM in fp32, with PROMPTS. Read it; change a copy."""
    folder = tmp_path_factory.mktemp("minilm")
    checkpoint = Path(shutil.copytree(minilm_folder, folder / "checkpoint"))
    config = checkpoint / "config_sentence_transformers.json"
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"prompts": PROMPTS}))
    export(resolve_source(str(checkpoint)), ExportRequest(out=folder / "bundle", precisions=(Precision.FP32,)))
    return folder / "bundle"


@pytest.fixture(scope="session")
def encoder(minilm_bundle: Path) -> Encoder:
    return Encoder.load(minilm_bundle)


@pytest.fixture
def tiny(make_bundle: MakeBundle) -> Path:
    """A bundle of a few numbers, with its companions."""
    folder = make_bundle()
    manifest = with_companions(Bundle.open(folder).manifest)
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    write_companions(folder, manifest)
    return folder


@pytest.fixture
def copied(minilm_bundle: Path, tmp_path: Path) -> Path:
    """A copy of `minilm_bundle`, to be changed."""
    return Path(shutil.copytree(minilm_bundle, tmp_path / "copied"))


@pytest.fixture
def cancel_once_begun(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> CancelOnce:
    """Cancels a task that embeds for minutes once the engine computes; returns how the encoder's calls ended."""
    encode, endings = encoder.aencode, list[str]()

    async def noting_its_end(*args: Any, **options: Any) -> Any:
        try:
            vectors = await encode(*args, **options)
        except asyncio.CancelledError:
            endings.append("cancelled")
            raise
        endings.append("done")
        return vectors

    async def run(embed: Embed) -> None:
        before = encoder.times.compute_s
        task = asyncio.ensure_future(embed(["the ferry leaves at noon " * 20] * 20_000))
        while encoder.times.compute_s == before:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    def start(embed: Embed) -> list[str]:
        asyncio.run(run(embed))  # its end waits for the threads
        return endings

    monkeypatch.setattr(encoder, "aencode", noting_its_end)
    return start
