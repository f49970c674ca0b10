# SPDX-License-Identifier: Apache-2.0
"""Rotary positions on channels-last maps, in place. The formulas are those of mlic_fast.nn.rotation."""

from __future__ import annotations

import torch
from torch import Tensor

from mlic_fast.nn.rotation import AxialRotation, Rotation


def _rows(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[2], x.shape[3]


class CompiledRotation:
    """Turns the pairs of channels of a map [B, D, h, w]."""

    def __init__(self, module: Rotation) -> None:
        with torch.no_grad():
            self._speeds = module.speeds()

    def __call__(self, x: Tensor) -> Tensor:
        """Returns x."""
        pairs = torch.view_as_complex(x.permute(0, 2, 3, 1).view(*_rows(x), -1, 2))  # [B, h, w, D/2]
        pairs.mul_(self._turns(x))
        return x

    def _turns(self, x: Tensor) -> Tensor:
        """What pairs as complex numbers are multiplied with, [h, w, pairs]; computed in float64, rounded to float32."""
        columns, rows = (
            torch.arange(side, dtype=torch.float64, device=x.device)[:, None] * speed
            for side, speed in zip((x.shape[3], x.shape[2]), self._speeds, strict=True)
        )
        turns = torch.polar(torch.ones_like(rows), rows)[:, None] * torch.polar(torch.ones_like(columns), columns)
        return turns.to(torch.complex64)


class CompiledAxialRotation(CompiledRotation):
    """Turns queries and keys among queries, keys and values [B, 3C, h, w] of the local context's two heads."""

    def __init__(self, module: AxialRotation) -> None:
        super().__init__(module)

    def __call__(self, x: Tensor) -> Tensor:
        """Returns x."""
        turns = torch.view_as_real(self._turns(x))[:, :, None, :, None]  # [h, w, 1, C/4, 1, 2]
        cos, sin = turns.unbind(5)
        both = x.permute(0, 2, 3, 1).view(*_rows(x), 3, -1, 2, 2)[:, :, :, :2]
        even, odd = both.unbind(5)  # [B, h, w, 2, C/4, 2], views
        turned = even * cos - odd * sin
        odd.mul_(cos).addcmul_(even, sin)
        even.copy_(turned)
        return x
