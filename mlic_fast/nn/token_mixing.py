# SPDX-License-Identifier: Apache-2.0
"""Token mixing: what MLICv2's transforms have in place of residual blocks.

After CompressAI's reading of the paper (arXiv 2504.19119), with its parameter names. What the authors' blocks are like
in detail is not published.
"""

from __future__ import annotations

from torch import Tensor, nn

from mlic_fast.nn.blocks import conv
from mlic_fast.nn.gate import ChannelNorm, gate_layers


class DepthwiseResidualBlock(nn.Module):
    """[B, D, H, W] → the same shape: depth-wise 3×3, GELU, 1×1, GELU, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            conv(channels, channels, 3, groups=channels),
            nn.GELU(),
            conv(channels, channels, 1),
            nn.GELU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.block(x)
        return out


class TokenGate(nn.Module):
    """x [B, D, H, W] times its gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = gate_layers(channels, conv)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.gate(x)
        return out


class TokenMixing(nn.Module):
    """[B, D, H, W] → the same shape: a mixer of positions, then a gate; both see it normalised and are added to it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.token_mixer = nn.Sequential(
            DepthwiseResidualBlock(channels),
            conv(channels, channels, 5, groups=channels),
            conv(channels, channels, 1),
        )
        self.norm2 = ChannelNorm(channels)
        self.gate = TokenGate(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mixer(self.norm1(x))
        out: Tensor = x + self.gate(self.norm2(x))
        return out


def token_mixing_pair(channels: int) -> nn.Sequential:
    """Two blocks, which stand where MLIC++ has one residual block."""
    return nn.Sequential(TokenMixing(channels), TokenMixing(channels))
