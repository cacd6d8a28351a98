"""Vectors in a device's memory, for whoever goes on with them there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class DeviceVectors:
    """Vectors that stay on the device: float32 `(n, dim)`, or `(dim,)` of a single text.

    Any library that speaks DLPack takes them without a copy, `torch.from_dlpack(vectors)` or
    `cupy.from_dlpack(vectors)`, and keeps the memory alive. They are complete when the call returns them.
    """

    def __init__(self, value: Any, device: str) -> None:
        self._value, self.device = value, device
        self.shape: tuple[int, ...] = tuple(value.shape())
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule over the same memory; no stream has to wait for it."""
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("vectors are shared where they are: ask for no copy and no other device")
        return self._value.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        """Kind and index of the device, as DLPack counts them."""
        kind, index = self._value.__dlpack_device__()
        return int(kind), int(index)

    def numpy(self) -> NDArray[np.float32]:
        """A copy in the host's memory."""
        vectors: NDArray[np.float32] = self._value.numpy()
        return vectors

    @property
    def rows(self) -> DeviceRows:
        """Where they are written, for backends."""
        n_rows = self.shape[0] if len(self.shape) == 2 else 1
        return DeviceRows(self._value, self._value.data_ptr(), self.shape[-1] * self.dtype.itemsize, n_rows)

    def __repr__(self) -> str:
        return f"<DeviceVectors float32 {self.shape} on {self.device}>"


class DeviceRows:
    """Consecutive rows of DeviceVectors, for a backend to write."""

    def __init__(self, owner: Any, pointer: int, row_bytes: int, n_rows: int) -> None:
        self._owner, self.pointer, self._row_bytes, self._n_rows = owner, pointer, row_bytes, n_rows

    def __len__(self) -> int:
        return self._n_rows

    def __getitem__(self, rows: slice) -> DeviceRows:
        start, end, _ = rows.indices(self._n_rows)
        pointer = self.pointer + start * self._row_bytes
        return DeviceRows(self._owner, pointer, self._row_bytes, max(0, end - start))
