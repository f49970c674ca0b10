# SPDX-License-Identifier: Apache-2.0
"""Building blocks of the transforms: residual blocks that keep, halve or double the resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from compressai.layers import GDN
from torch import Tensor, nn

from mlic_fast.compute.backend import choose
from mlic_fast.ops.gdn import gdn
from mlic_fast.ops.winograd import conv3x3, on_cpu_kernels


def conv(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """Convolution with bias and zero padding kernel // 2."""
    kind = TrainedConv if kernel == 3 and stride == 1 else nn.Conv2d
    return kind(in_channels, out_channels, kernel, stride, kernel // 2)


def subpixel_conv(in_channels: int, out_channels: int, factor: int) -> nn.Sequential:
    """3×3 convolution to out_channels·factor² channels, spread over `factor` times the resolution."""
    return nn.Sequential(conv(in_channels, out_channels * factor**2), nn.PixelShuffle(factor))


def normalise(module: GDN, x: Tensor, residual: Tensor) -> Tensor:
    """module(x) + residual, both [B, C, H, W], in one operation; `module` holds the parameters."""
    return gdn(
        x, module.beta_reparam(module.beta), module.gamma_reparam(module.gamma), residual, inverse=module.inverse
    )


class TrainedConv(nn.Conv2d):
    """3×3 convolution that takes Winograd's method where gradients are wanted and it is the faster one."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_grad_enabled():
            return conv3x3(input, weight, bias)
        return super()._conv_forward(input, weight, bias)

    def of_gelu(self, x: Tensor) -> Tensor:
        """self(GELU(x)); except on the plain path, gradients keep x alone."""
        if not torch.is_grad_enabled() or choose(x) == "torch":
            out: Tensor = self(F.gelu(x))
            return out
        return conv3x3(x, self.weight, self.bias, gelu=True)


def for_training(x: Tensor) -> Tensor:
    """x in the layout that the transforms train in: channels-last where Winograd's method may be taken."""
    if torch.is_grad_enabled() and x.dtype == torch.float32 and on_cpu_kernels(x):
        return x.contiguous(memory_format=torch.channels_last)
    return x


class StridedSkip(nn.Conv2d):
    """1×1 convolution of stride 2, for the skip around a downsampling block."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() and input.device.type == "cpu":
            if on_cpu_kernels(input):
                # of what is read alone, so that gradients keep a quarter of the map instead of a copy of it
                read = input[:, :, ::2, ::2].permute(0, 2, 3, 1).contiguous()  # [B, H/2, W/2, in]
                return F.linear(read, weight.flatten(1), bias).permute(0, 3, 1, 2)
            # PyTorch's backward on the CPU (2.14 at least) overruns its buffer for 3 channels in channels-last layout
            input, weight = input.contiguous(), weight.contiguous()
        return super()._conv_forward(input, weight, bias)


class ResidualBlock(nn.Module):
    """[B, in, H, W] → [B, out, H, W]; the skip is a 1×1 convolution where the widths differ."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels)
        self.conv2 = TrainedConv(out_channels, out_channels, 3, padding=1)
        self.skip = conv(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.gelu(self.conv2.of_gelu(self.conv1(x)))
        return out + (x if self.skip is None else self.skip(x))


class DownsamplingBlock(nn.Module):
    """[B, in, H, W] → [B, out, H/2, W/2], normalised by GDN."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, stride=2)
        self.conv2 = TrainedConv(out_channels, out_channels, 3, padding=1)
        self.gdn = GDN(out_channels)
        self.skip = StridedSkip(in_channels, out_channels, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return normalise(self.gdn, self.conv2.of_gelu(self.conv1(x)), self.skip(x))


class UpsamplingBlock(nn.Module):
    """[B, in, H, W] → [B, out, 2H, 2W], normalised by inverse GDN."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.subpel_conv = subpixel_conv(in_channels, out_channels, 2)
        self.conv = TrainedConv(out_channels, out_channels, 3, padding=1)
        self.igdn = GDN(out_channels, inverse=True)
        self.upsample = subpixel_conv(in_channels, out_channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        return normalise(self.igdn, self.conv.of_gelu(self.subpel_conv(x)), self.upsample(x))
