# SPDX-License-Identifier: Apache-2.0
"""Building blocks of the transforms: residual blocks that keep, halve or double the resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from compressai.layers import GDN
from torch import Tensor, nn

from mlic_fast.ops.gdn import gdn


def conv(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """Convolution with bias and zero padding kernel // 2."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2)


def subpixel_conv(in_channels: int, out_channels: int, factor: int) -> nn.Sequential:
    """3×3 convolution to out_channels·factor² channels, spread over `factor` times the resolution."""
    return nn.Sequential(conv(in_channels, out_channels * factor**2), nn.PixelShuffle(factor))


def normalise(module: GDN, x: Tensor, residual: Tensor) -> Tensor:
    """module(x) + residual, both [B, C, H, W], in one operation; `module` holds the parameters."""
    return gdn(
        x, module.beta_reparam(module.beta), module.gamma_reparam(module.gamma), residual, inverse=module.inverse
    )


class StridedSkip(nn.Conv2d):
    """1×1 convolution of stride 2, for the skip around a downsampling block."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() and input.device.type == "cpu":
            # PyTorch's backward on the CPU (2.14 at least) overruns its buffer for 3 channels in channels-last layout
            input, weight = input.contiguous(), weight.contiguous()
        return super()._conv_forward(input, weight, bias)


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
        self.skip = StridedSkip(in_channels, out_channels, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return normalise(self.gdn, self.conv2(F.gelu(self.conv1(x))), self.skip(x))


class UpsamplingBlock(nn.Module):
    """[B, in, H, W] → [B, out, 2H, 2W], normalised by inverse GDN."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.subpel_conv = subpixel_conv(in_channels, out_channels, 2)
        self.conv = conv(out_channels, out_channels)
        self.igdn = GDN(out_channels, inverse=True)
        self.upsample = subpixel_conv(in_channels, out_channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        return normalise(self.igdn, self.conv(F.gelu(self.subpel_conv(x))), self.upsample(x))
