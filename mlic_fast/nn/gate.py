# SPDX-License-Identifier: Apache-2.0
"""The gate of MLICv2: a map times a number between 0 and 1 for each of its values; and the norm that it begins with.

Token mixing, context reweighting and the hyper context end with one.
"""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn


class _MakesConv(Protocol):
    def __call__(self, in_channels: int, out_channels: int, kernel: int, *, groups: int = 1) -> nn.Conv2d: ...


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map [B, D, h, w], at each position."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        rows = input.permute(0, 2, 3, 1)
        return F.layer_norm(rows, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def gate_layers(channels: int, conv: _MakesConv) -> nn.Sequential:
    """What x [B, D, h, w] is multiplied with, as layers: normalised, 1×1, depth-wise 3×3, 1×1, sigmoid.

    conv: makes the convolutions, zero-padded, so that each part of a model keeps to its own precision.
    """
    return nn.Sequential(
        ChannelNorm(channels),
        conv(channels, channels, 1),
        nn.GELU(),
        conv(channels, channels, 3, groups=channels),
        nn.GELU(),
        conv(channels, channels, 1),
        nn.Sigmoid(),
    )


def parts_of_gate(layers: nn.Sequential) -> tuple[ChannelNorm, list[nn.Module]]:
    """The norm of `gate_layers`, and its convolutions; GELU comes after each of these but the last."""
    norm = layers[0]
    assert isinstance(norm, ChannelNorm)
    return norm, [layers[n] for n in (1, 3, 5)]
