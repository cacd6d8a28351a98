"""What an encoder is made of, once everything has been chosen."""

from __future__ import annotations

from dataclasses import dataclass

from mexma_runtime.backends.base import BackendInfo
from mexma_runtime.bundle.bundle import Bundle
from mexma_runtime.bundle.manifest import EngineEntry
from mexma_runtime.types import Dialect, Pooling, Precision


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """What was chosen; nothing in it is a wish."""

    bundle: str
    """Its folder."""
    model_id: str
    model_revision: str | None
    engine: str
    dialect: Dialect
    precision: Precision
    recipe: str | None
    """Of int8 and fp8; None where nothing is quantized."""
    activation: str | None
    """Number format of quantized activations; None where there are none."""
    backend: str
    version: str
    """Of the backend's library."""
    device: str
    providers: tuple[str, ...]
    """Execution providers as the library names them, in order."""
    n_threads: int
    spinning: bool
    processor: str
    """The processor and the instruction sets that the library uses of it, as certificates keep it; or the GPU."""
    n_graphs: int
    """Of a GPU: shapes of small batches that are run as captured graphs."""
    graph_bytes: int
    """Of a GPU: its memory that they take, as far as they were captured when the encoder was loaded."""
    attention: str
    """Of packed engines on a GPU: which of onnxruntime's kernels run, and why, in words; of others, empty."""
    max_batch_tokens: int
    """Tokens that are computed together at most."""
    dim: int
    """Numbers in a vector."""
    max_tokens: int
    """Tokens of a text that are read, special ones included."""
    pooling: Pooling
    pooling_source: str
    """Where the pooling was read."""
    normalize: bool
    """Whether vectors have length 1 unless a call asks otherwise: the checkpoint's own way."""
    normalize_source: str
    space: str
    """Fingerprint of the vector space: vectors of encoders with the same one may be compared without a thought."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Where an encoder's time went since it was loaded; counters that only grow, for metrics and benchmarks."""

    tokenize_s: float
    """Texts to ids. With many texts it runs beside the engine, so callers do not wait for all of it."""
    copy_s: float
    """Ids into the engine and vectors out of it: padding, binding, copies. On a GPU partly beside its work."""
    compute_s: float
    """Inside the engine's library, and waiting for a GPU."""


def describe(bundle: Bundle, engine: EngineEntry, backend: BackendInfo) -> EncoderInfo:
    """Gather what the manifest, the engine and the backend say of themselves."""
    manifest = bundle.manifest
    return EncoderInfo(
        bundle=str(bundle.folder),
        model_id=manifest.model.id,
        model_revision=manifest.model.revision,
        engine=engine.name,
        dialect=engine.dialect,
        precision=engine.precision,
        recipe=engine.recipe,
        activation=engine.activation,
        backend=backend.backend,
        version=backend.version,
        device=backend.device,
        providers=backend.providers,
        n_threads=backend.n_threads,
        spinning=backend.spinning,
        processor=backend.processor,
        n_graphs=backend.n_graphs,
        graph_bytes=backend.graph_bytes,
        attention=backend.attention,
        max_batch_tokens=backend.policy.max_batch_tokens,
        dim=manifest.dim,
        max_tokens=manifest.text.max_tokens,
        pooling=manifest.pooling_mode,
        pooling_source=manifest.pooling.source,
        normalize=manifest.is_normalized,
        normalize_source=manifest.normalize.source,
        space=engine.space,
    )
