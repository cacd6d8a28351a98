"""Embed text with an exported sentence encoder: a bundle in, vectors out."""

from __future__ import annotations

from mexma_runtime.encoder import Encoder
from mexma_runtime.errors import (
    BundleError,
    EncodeCancelledError,
    EncoderBusyError,
    EncoderClosedError,
    EncodeTimeoutError,
    EngineFailedError,
    EngineUnavailableError,
    FileError,
    InputError,
    MexmaError,
    MissingDependencyError,
    TextTooLongError,
    TruncationWarning,
    UsageError,
)
from mexma_runtime.info import EncoderInfo, Times
from mexma_runtime.types import Dialect, Pooling, Precision, Ragged

__all__ = [
    "BundleError",
    "Dialect",
    "EncodeCancelledError",
    "EncodeTimeoutError",
    "Encoder",
    "EncoderBusyError",
    "EncoderClosedError",
    "EncoderInfo",
    "EngineFailedError",
    "EngineUnavailableError",
    "FileError",
    "InputError",
    "MexmaError",
    "MissingDependencyError",
    "Pooling",
    "Precision",
    "Ragged",
    "TextTooLongError",
    "Times",
    "TruncationWarning",
    "UsageError",
]
