"""Memory that forked processes share, and messages whose arrays lie in it.

A pipe takes 64 KiB; a message without its arrays is a few hundred bytes. So that who sends one never
waits for who reads it, and arrays are copied once.
"""

from __future__ import annotations

import mmap
import pickle
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

_ALIGNED = 64  # bytes: where a tensor begins


class Packed(NamedTuple):
    """An object without its arrays."""

    written: bytes
    sizes: list[int]
    """Bytes of each array in the room."""


class Room:
    """Shared memory for one message at a time.

    Parameters
    ----------
    size : int
        In bytes; only what is written takes memory.
    """

    def __init__(self, size: int) -> None:
        self.size = max(size, _ALIGNED)
        self._memory = mmap.mmap(-1, self.size)  # shared with all processes that are forked later

    def pack(self, value: Any) -> Packed:
        """Write the object's arrays here; those that do not fit stay in the message."""
        buffers: list[pickle.PickleBuffer] = []
        written = pickle.dumps(value, pickle.HIGHEST_PROTOCOL, buffer_callback=buffers.append)
        raw = [buffer.raw() for buffer in buffers]
        if sum(_aligned(own.nbytes) for own in raw) > self.size:
            return Packed(pickle.dumps(value, pickle.HIGHEST_PROTOCOL), [])
        start = 0
        for own in raw:
            self._memory[start : start + own.nbytes] = own
            start += _aligned(own.nbytes)
        return Packed(written, [own.nbytes for own in raw])

    def unpack(self, packed: Packed) -> Any:
        """The object, whose arrays stay here."""
        start, buffers, view = 0, list[memoryview](), memoryview(self._memory)
        for size in packed.sizes:
            buffers.append(view[start : start + size])
            start += _aligned(size)
        return pickle.loads(packed.written, buffers=buffers)  # noqa: S301 - from our own process


class Layout:
    """Where a model's tensors lie in one piece of memory.

    Parameters
    ----------
    model : dict of Tensor
        Names, shapes and types.
    """

    def __init__(self, model: Mapping[str, Tensor]) -> None:
        self._places: dict[str, tuple[int, int, torch.dtype, torch.Size]] = {}
        self.size = 0
        """In bytes."""
        for name, value in model.items():
            self._places[name] = (self.size, value.nbytes, value.dtype, value.shape)
            self.size += _aligned(value.nbytes)

    def shared(self) -> Tensor:
        """New memory for one model, shared with all processes that are forked later; uint8 [bytes]."""
        return torch.frombuffer(mmap.mmap(-1, max(self.size, _ALIGNED)), dtype=torch.uint8)

    def views(self, memory: Tensor) -> dict[str, Tensor]:
        """The model that lies in the memory."""
        return {
            name: memory[start : start + size].view(dtype).view(shape)
            for name, (start, size, dtype, shape) in self._places.items()
        }

    def fits(self, model: Mapping[str, Tensor]) -> bool:
        """Whether a model has these names, shapes and types."""
        return len(model) == len(self._places) and all(
            name in self._places and self._places[name][2:] == (value.dtype, value.shape)
            for name, value in model.items()
        )


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
