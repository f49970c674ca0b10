# SPDX-License-Identifier: Apache-2.0
"""Memory of large maps on the CPU that is taken again once a map is gone.

The C library gives large blocks back to the system when they are freed, which clears every page at its next use:
several percent of the time that encoding takes.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections import deque
from math import prod
from threading import Lock

import torch
from torch import Tensor

from mlic_fast.compute.forks import after_fork

# Maps smaller than this are left to PyTorch's allocator, as blocks that are larger than twice the map would be wasted.
SMALLEST = 2**20
# Bytes that are kept for maps to come.
MOST_KEPT = 128 * 2**20


class MapMemory:
    """Blocks of memory that wait for maps. Threads may share one; a map may outlive it."""

    def __init__(self, most_kept: int = MOST_KEPT) -> None:
        self._most_kept = most_kept
        self._lock = Lock()
        self._free: list[Tensor] = []  # the one that was used last is last
        self._returned: deque[Tensor] = deque()  # by threads that must not wait for a lock

    def empty(self, shape: tuple[int, int, int, int]) -> Tensor:
        """A float32 map [B, C, H, W] of this shape, channels-last, its values undefined."""
        size = 4 * prod(shape)
        if size < SMALLEST:
            return torch.empty(shape, dtype=torch.float32, memory_format=torch.channels_last)
        block = self._take(size)
        # the map holds on to this array, and nothing else does: when it goes, the block is free
        array = block.numpy()[:size].view("float32")
        weakref.finalize(array, self._returned.append, block).atexit = False
        batch, channels, height, width = shape
        return torch.from_numpy(array).view(batch, height, width, channels).permute(0, 3, 1, 2)

    def kept(self) -> int:
        """Bytes that wait for maps."""
        with self._lock:
            self._collect()
            return sum(block.numel() for block in self._free)

    def release(self) -> None:
        """Give what waits for maps back to the system, and what else the C library keeps, as far as it can be told."""
        with self._lock:
            self._collect()
            self._free = []
        if sys.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
            if trim is not None:
                trim(0)

    def renew(self) -> None:
        """Forget what another thread of the process that this one was forked from was doing."""
        self._lock, self._free = Lock(), []

    def _take(self, size: int) -> Tensor:
        with self._lock:
            self._collect()
            for number in reversed(range(len(self._free))):
                if size <= self._free[number].numel() <= 2 * size:
                    return self._free.pop(number)
        return torch.empty(size, dtype=torch.uint8)

    def _collect(self) -> None:
        while self._returned:
            self._free.append(self._returned.popleft())
        kept = sum(block.numel() for block in self._free)
        while kept > self._most_kept:
            kept -= self._free.pop(0).numel()


_shared: weakref.ref[MapMemory] | None = None
_shared_lock = Lock()


def _renew() -> None:
    global _shared_lock
    _shared_lock = Lock()
    blocks = None if _shared is None else _shared()
    if blocks is not None:
        blocks.renew()


after_fork(_renew)


def shared_map_memory() -> MapMemory:
    """The memory that all engines of this process share, for as long as somebody holds them."""
    global _shared
    with _shared_lock:
        blocks = None if _shared is None else _shared()
        if blocks is None:
            blocks = MapMemory()
            _shared = weakref.ref(blocks)
        return blocks
