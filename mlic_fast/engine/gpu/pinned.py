# SPDX-License-Identifier: Apache-2.0
"""Memory on the device and as much on the host, divided alike, so that many arrays travel in one copy."""

from __future__ import annotations

import torch
from torch import Tensor

# What the parts' offsets are multiples of: enough for every type, and for what kernels expect of an address.
_ALIGNMENT = 64


class PinnedArrays:
    """Named arrays that lie next to each other on the device and, pinned, on the host.

    The host must not touch what `send` is taking or `fetch` is bringing: wait() says when the last fetch is complete,
    and so is everything before it in its stream. On the CPU copies are made at once.
    """

    def __init__(self, device: torch.device, **parts: tuple[torch.dtype, tuple[int, ...]]) -> None:
        """parts: dtype and shape of each array. All begin as zeros."""
        starts, end = {}, 0
        for name, (dtype, shape) in parts.items():
            starts[name] = end
            size = dtype.itemsize * torch.Size(shape).numel()
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
        on_gpu = device.type == "cuda"
        self._there = torch.zeros(end, dtype=torch.uint8, device=device)
        self._here = torch.zeros(end, dtype=torch.uint8, pin_memory=on_gpu)
        self._arrived = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        self.nbytes = end

        def view(memory: Tensor, name: str) -> Tensor:
            dtype, shape = parts[name]
            size = dtype.itemsize * torch.Size(shape).numel()
            return memory[starts[name] : starts[name] + size].view(dtype).view(shape)

        self.device = {name: view(self._there, name) for name in parts}
        self.host = {name: view(self._here, name) for name in parts}

    def send(self) -> None:
        """Host to device, in the current stream."""
        self._there.copy_(self._here, non_blocking=True)

    def fetch(self) -> None:
        """Device to host, in the current stream."""
        self._here.copy_(self._there, non_blocking=True)
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(self._there.device))

    def wait(self) -> None:
        """Until the last fetch is complete."""
        if self._arrived is not None:
            self._arrived.synchronize()
