"""Other libraries that embed text, each in an environment of its own: what `make peers` installs and where it lies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mexma_benchmarks.peers.environments import make_environments, peer_environment
from mexma_benchmarks.run.subjects import Subject
from mexma_runtime.errors import UsageError
from mexma_runtime.terminal import Progress


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One library, run in one way."""

    name: str
    """As tables show it."""
    adapter: str
    """Module in `adapters/`."""
    environment: str
    """What it needs: `peers/ENVIRONMENT.txt`, which others may share."""
    options: dict[str, Any] = field(default_factory=dict)
    """For the adapter."""
    converts: bool = True
    """Whether the adapter makes files of the checkpoint before it runs."""
    calibrates: bool = False
    """Whether it reads calibration text for them."""
    note: str
    """What of it is measured."""


def _sbert(backend: str, note: str, *, int8: bool = False) -> Peer:
    return Peer(
        name=f"sentence-transformers {backend}" + " int8" * int8,
        adapter="sbert",
        environment="sentence-transformers",
        options={"backend": backend, "int8": int8},
        converts=backend != "torch",
        calibrates=backend == "openvino" and int8,
        note=note,
    )


PEERS = (
    _sbert("torch", "PyTorch, fp32"),
    _sbert("onnx", "optimum's export in onnxruntime, fp32"),
    _sbert("onnx", "its export_dynamic_quantized_onnx_model, the recipe for this processor", int8=True),
    _sbert("openvino", "optimum-intel's export in OpenVINO, kept at fp32"),
    _sbert("openvino", "its export_static_quantized_openvino_model with NNCF's defaults", int8=True),
    Peer(
        name="optimum onnxruntime",
        adapter="optimum_ort",
        environment="optimum",
        note="ORTModelForFeatureExtraction on optimum's export, fp32",
    ),
    Peer(
        name="infinity torch",
        adapter="infinity",
        environment="infinity",
        options={"dtype": "auto"},
        note="AsyncEmbeddingEngine in process, its torch engine, fp32 on a CPU",
    ),
    Peer(
        name="infinity torch int8",
        adapter="infinity",
        environment="infinity",
        options={"dtype": "int8"},
        note="the same, linear layers in int8 by torch.quantization.quantize_dynamic",
    ),
    Peer(
        name="CTranslate2 int8",
        adapter="ct2",
        environment="ctranslate2",
        note="its converter's int8 weights, activations quantized as it runs",
    ),
    Peer(
        name="OpenVINO NNCF int8",
        adapter="openvino_nncf",
        environment="openvino",
        calibrates=True,
        note="OpenVINO's own conversion, NNCF's static quantization for transformers",
    ),
)


def find_peers(names: Iterable[str]) -> tuple[Peer, ...]:
    """The peers of those names, all of them where none is named; UsageError for a name that none has."""
    wanted, known = list(names), {peer.name: peer for peer in PEERS}
    if unknown := [name for name in wanted if name not in known]:
        raise UsageError(f"no peer is called {unknown[0]!r}: there are {', '.join(known)}")
    return tuple(known[name] for name in wanted) or PEERS


def peer_subject(peer: Peer, folder: Path) -> Subject:
    """The peer as a subject; unavailable where its environment in `folder` is not complete."""
    environment = peer_environment(peer.environment, folder)
    return Subject(
        name=peer.name,
        role="peer",
        adapter=peer.adapter,
        options=dict(peer.options),
        python=environment.python,
        environment=environment.requirements.read_text(encoding="utf-8"),
        converts=peer.converts,
        calibrates=peer.calibrates,
        unavailable=None if environment.python else "not installed: make peers",
    )


def make_peers(peers: Iterable[Peer], folder: Path, progress: Progress) -> None:
    """Make the environments of `peers` in `folder`.

    Raises:
        PeerEnvironmentError: some could not be made, the others were; the message says of each why.
    """
    names = dict.fromkeys(peer.environment for peer in peers)
    make_environments([peer_environment(name, folder) for name in names], progress)
