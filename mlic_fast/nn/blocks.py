# SPDX-License-Identifier: Apache-2.0
"""Building blocks of the transforms: residual blocks that keep, halve or double the resolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mlic_fast.nn.gdn import GDN


def conv(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Convolution with bias and zero padding kernel // 2."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups)


def subpixel_conv(in_channels: int, out_channels: int, factor: int) -> nn.Sequential:
    """3×3 convolution to out_channels·factor² channels, spread over `factor` times the resolution."""
    return nn.Sequential(conv(in_channels, out_channels * factor**2), nn.PixelShuffle(factor))


class ResidualBlock(nn.Module):
    """[B, in, H, W] → [B, out, H, W]; the skip is a 1×1 convolution where the widths differ."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels)
        self.conv2 = conv(out_channels, out_channels)
        self.skip = conv(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return out + (x if self.skip is None else self.skip(x))


class DownsamplingBlock(nn.Module):
    """[B, in, H, W] → [B, out, H/2, W/2], normalised by GDN."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, stride=2)
        self.conv2 = conv(out_channels, out_channels)
        self.gdn = GDN(out_channels)
        self.skip = conv(in_channels, out_channels, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.gdn(self.conv2(F.gelu(self.conv1(x))), self.skip(x))
        return out


class UpsamplingBlock(nn.Module):
    """[B, in, H, W] → [B, out, 2H, 2W], normalised by inverse GDN."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.subpel_conv = subpixel_conv(in_channels, out_channels, 2)
        self.conv = conv(out_channels, out_channels)
        self.igdn = GDN(out_channels, inverse=True)
        self.upsample = subpixel_conv(in_channels, out_channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.igdn(self.conv(F.gelu(self.subpel_conv(x))), self.upsample(x))
        return out
