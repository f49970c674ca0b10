# SPDX-License-Identifier: Apache-2.0
"""The checkerboard: which positions of a slice are coded first, and how a pass is packed.

Anchors are the positions where row + column is odd; they are coded first. Non-anchors are
the rest. A packed pass [B, C, h, w/2] holds one colour: column j of an even row is column
2j + 1 (anchor) or 2j (non-anchor) of the full map, of an odd row the other way round.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor


class Pass(Enum):
    """One of the two coding passes over a slice. The value is the first coded column of row 0."""

    ANCHOR = 1
    NONANCHOR = 0


def keep(x: Tensor, colour: Pass) -> Tensor:
    """x [B, C, h, w] at the positions of `colour`, zero elsewhere."""
    out = torch.zeros_like(x)
    first = colour.value
    out[:, :, 0::2, first::2] = x[:, :, 0::2, first::2]
    out[:, :, 1::2, 1 - first :: 2] = x[:, :, 1::2, 1 - first :: 2]
    return out


def pack(x: Tensor, colour: Pass) -> Tensor:
    """x [B, C, h, w] → its values at `colour` in coding order, [B, C, h, w/2] contiguous."""
    batch, channels, height, width = x.shape
    first = colour.value
    out = x.new_empty(batch, channels, height, width // 2)
    out[:, :, 0::2] = x[:, :, 0::2, first::2]
    out[:, :, 1::2] = x[:, :, 1::2, 1 - first :: 2]
    return out


def unpack(packed: Tensor, colour: Pass) -> Tensor:
    """packed [B, C, h, w/2] → [B, C, h, w] with zeros at the other colour."""
    batch, channels, height, half = packed.shape
    first = colour.value
    out = packed.new_zeros(batch, channels, height, 2 * half)
    out[:, :, 0::2, first::2] = packed[:, :, 0::2]
    out[:, :, 1::2, 1 - first :: 2] = packed[:, :, 1::2]
    return out
