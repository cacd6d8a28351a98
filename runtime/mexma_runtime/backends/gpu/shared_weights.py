"""Weights that lie in a device's memory once, and are read there by several of onnxruntime's sessions.

onnxruntime takes a value in place of an initializer, and uses it where it is, if its memory belongs to the user and is
on the device that the initializer is for. Otherwise it copies, and only warns: what a session takes shows whether it
did. From Python, memory of the user's own comes by DLPack.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mexma_runtime.backends.gpu.device import Device
from mexma_runtime.bundle.linked_files import MappedTensor

ALIGNMENT = 256
"""Bytes; as cudaMalloc aligns."""
CHUNK_BYTES = 32 << 20
"""That are copied to the device at once, through page-locked memory."""

DEVICES = {"cpu": 1, "cuda": 2}
KINDS = {"i": 0, "u": 1, "f": 2}
"""DLPack's codes for kinds of devices, and for NumPy's kinds of numbers."""


class SharedWeights:
    """Weights on a device, for as long as this object lives: whoever has a session that reads them keeps it."""

    def __init__(self, weights: Sequence[MappedTensor], device: Device) -> None:
        """DeviceMemoryError where they do not fit."""
        ends = np.cumsum([-(-tensor.values.nbytes // ALIGNMENT) * ALIGNMENT for tensor in weights], dtype=int)
        self.n_bytes = int(ends[-1])
        self._memory = device.allocate(self.n_bytes)
        self.values: dict[str, Any] = {}
        """Each as onnxruntime's OrtValue, by the name of its initializer."""
        locked = device.host_bytes(min(self.n_bytes, CHUNK_BYTES))
        for tensor, offset in zip(weights, [0, *ends[:-1].tolist()], strict=True):
            pointer = self._memory.pointer + offset
            _copy(tensor.values, pointer, device, locked)
            self.values[tensor.name] = _value(tensor.values, pointer, device)


def _copy(values: NDArray[Any], pointer: int, device: Device, locked: NDArray[np.uint8]) -> None:
    left = values.reshape(-1).view(np.uint8)
    while left.size:
        chunk = locked[: min(left.size, locked.size)]
        chunk[...] = left[: chunk.size]
        device.upload(chunk, pointer)
        device.record_event().wait()
        left, pointer = left[chunk.size :], pointer + chunk.size


class _DlDevice(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _DlType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _DlManagedTensor(ctypes.Structure):
    """DLManagedTensor of dlpack.h, with the DLTensor that it begins with."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _DlDevice),
        ("n_dims", ctypes.c_int32),
        ("dtype", _DlType),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


def _value(like: NDArray[Any], pointer: int, device: Device) -> Any:
    """An OrtValue of the type and shape of `like` over the memory at `pointer`, which stays ours.

    What describes it is freed by C's `free`, not by code of Python's, since a value may outlive the interpreter.
    """
    import onnxruntime as ort

    c = ctypes.CDLL(None)
    c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    shape = (ctypes.c_int64 * like.ndim)(*like.shape)
    n_bytes = ctypes.sizeof(_DlManagedTensor)
    block = c.malloc(n_bytes + ctypes.sizeof(shape))
    managed = _DlManagedTensor(
        data=pointer,
        device=_DlDevice(DEVICES[device.kind], device.index),
        n_dims=like.ndim,
        dtype=_DlType(KINDS[like.dtype.kind], 8 * like.dtype.itemsize, 1),
        shape=block + n_bytes,
        deleter=ctypes.cast(c.free, ctypes.c_void_p),
    )
    ctypes.memmove(block, ctypes.byref(managed), n_bytes)
    ctypes.memmove(block + n_bytes, shape, ctypes.sizeof(shape))
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype, new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return ort.OrtValue.from_dlpack(new_capsule(block, b"dltensor", None))
