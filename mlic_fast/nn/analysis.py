# SPDX-License-Identifier: Apache-2.0
"""Analysis transform g_a: picture to latent y."""

from __future__ import annotations

from torch import Tensor, nn

from mlic_fast.nn.blocks import DownsamplingBlock, ResidualBlock, conv


class AnalysisTransform(nn.Module):
    """x [B, 3, H, W] in [0, 1] → y [B, M, H/16, W/16]."""

    def __init__(self, N: int, M: int) -> None:
        super().__init__()
        self.analysis_transform = nn.Sequential(
            DownsamplingBlock(3, N),
            ResidualBlock(N, N),
            DownsamplingBlock(N, N),
            ResidualBlock(N, N),
            DownsamplingBlock(N, N),
            ResidualBlock(N, N),
            conv(N, M, stride=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.analysis_transform(x)
        return y
