# SPDX-License-Identifier: Apache-2.0
"""The checkerboard: which positions of a slice are coded first, and how the positions of a pass are packed.

Anchors are the positions where row + column is odd; they are coded first. Non-anchors are
the rest. A packed map [B, C, h, w/2] holds one of the two: column j of an even row is column
2j + 1 (anchor) or 2j (non-anchor) of the full map, of an odd row the other way round.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor


class Parity(Enum):
    """Positions of one of the two passes over a slice. The value is the first coded column of row 0."""

    ANCHOR = 1
    NONANCHOR = 0


def keep(x: Tensor, parity: Parity) -> Tensor:
    """x [B, C, h, w] at the positions of `parity`, zero elsewhere."""
    out = torch.zeros_like(x)
    first = parity.value
    out[:, :, 0::2, first::2] = x[:, :, 0::2, first::2]
    out[:, :, 1::2, 1 - first :: 2] = x[:, :, 1::2, 1 - first :: 2]
    return out


def pack(x: Tensor, parity: Parity, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """x [B, C, h, w] → its values at `parity`, [B, C, h, w/2]; in coding order if the layout is contiguous."""
    batch, channels, height, width = x.shape
    first = parity.value
    out = torch.empty((batch, channels, height, width // 2), dtype=x.dtype, device=x.device, memory_format=layout)
    out[:, :, 0::2] = x[:, :, 0::2, first::2]
    out[:, :, 1::2] = x[:, :, 1::2, 1 - first :: 2]
    return out


def unpack(packed: Tensor, parity: Parity) -> Tensor:
    """packed [B, C, h, w/2] → [B, C, h, w] with zeros at the other parity."""
    batch, channels, height, half = packed.shape
    out = packed.new_zeros(batch, channels, height, 2 * half)
    scatter(out, packed, parity)
    return out


def scatter(out: Tensor, packed: Tensor, parity: Parity) -> None:
    """Writes packed [B, C, h, w/2] to out [B, C, h, w] at `parity`."""
    first = parity.value
    out[:, :, 0::2, first::2] = packed[:, :, 0::2]
    out[:, :, 1::2, 1 - first :: 2] = packed[:, :, 1::2]


def fill(out: Tensor, value: Tensor, parity: Parity) -> None:
    """Writes value [C] to out [B, C, h, w] at every position of `parity`."""
    first, value = parity.value, value[:, None, None]
    out[:, :, 0::2, first::2] = value
    out[:, :, 1::2, 1 - first :: 2] = value
