# SPDX-License-Identifier: Apache-2.0
"""Checkerboard packing of channels-last maps; `mlic_fast.checkerboard` says which position goes where."""

from __future__ import annotations

import torch
from torch import Tensor

from mlic_fast.checkerboard import Pass
from mlic_fast.engine.layers import LAYOUT


def pack(x: Tensor, colour: Pass) -> Tensor:
    """x [B, C, h, w] at `colour` → [B, C, h, w/2], channels-last."""
    batch, channels, height, width = x.shape
    first = colour.value
    out = torch.empty((batch, channels, height, width // 2), dtype=x.dtype, device=x.device, memory_format=LAYOUT)
    out[:, :, 0::2] = x[:, :, 0::2, first::2]
    out[:, :, 1::2] = x[:, :, 1::2, 1 - first :: 2]
    return out


def scatter(out: Tensor, packed: Tensor, colour: Pass) -> None:
    """Writes packed [B, C, h, w/2] to out [B, C, h, w] at `colour`."""
    first = colour.value
    out[:, :, 0::2, first::2] = packed[:, :, 0::2]
    out[:, :, 1::2, 1 - first :: 2] = packed[:, :, 1::2]


def fill(out: Tensor, value: Tensor, colour: Pass) -> None:
    """Writes value [C] to out [B, C, h, w] at every position of `colour`."""
    first, value = colour.value, value[:, None, None]
    out[:, :, 0::2, first::2] = value
    out[:, :, 1::2, 1 - first :: 2] = value
