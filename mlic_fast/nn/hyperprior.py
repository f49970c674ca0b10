# SPDX-License-Identifier: Apache-2.0
"""Hyper analysis h_a (y to z) and hyper synthesis h_s (decoded z to the hyper-parameters of y)."""

from __future__ import annotations

from torch import Tensor, nn

from mlic_fast.compute.precision import KeepsFloat32, conv
from mlic_fast.nn import blocks


class HyperAnalysis(nn.Module):
    """y [B, M, h, w] → z [B, N, h/4, w/4]."""

    def __init__(self, N: int, M: int) -> None:
        super().__init__()
        self.reduction = nn.Sequential(
            blocks.conv(M, N),
            nn.GELU(),
            blocks.conv(N, N),
            nn.GELU(),
            blocks.conv(N, N, stride=2),
            nn.GELU(),
            blocks.conv(N, N),
            nn.GELU(),
            blocks.conv(N, N, stride=2),
        )

    def forward(self, y: Tensor) -> Tensor:
        z: Tensor = self.reduction(y)
        return z


class HyperSynthesis(KeepsFloat32):
    """ẑ [B, N, h/4, w/4] → hyper-parameters [B, 2M, h, w]; their second half are the hyper means."""

    def __init__(self, N: int, M: int) -> None:
        super().__init__()
        wide = M * 3 // 2
        self.increase = nn.Sequential(
            conv(N, M, 3),
            nn.GELU(),
            nn.Sequential(conv(M, 4 * M, 3), nn.PixelShuffle(2)),
            nn.GELU(),
            conv(M, wide, 3),
            nn.GELU(),
            nn.Sequential(conv(wide, 4 * wide, 3), nn.PixelShuffle(2)),
            nn.GELU(),
            conv(wide, 2 * M, 3),
        )

    def forward(self, z_hat: Tensor) -> Tensor:
        hyper: Tensor = self.increase(z_hat)
        return hyper
