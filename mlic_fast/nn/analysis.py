# SPDX-License-Identifier: Apache-2.0
"""Analysis transform g_a: picture to latent y."""

from __future__ import annotations

from torch import Tensor, nn

from mlic_fast.nn.blocks import DownsamplingBlock, ResidualBlock, conv
from mlic_fast.nn.token_mixing import token_mixing_pair


class AnalysisTransform(nn.Module):
    """x [B, 3, H, W] in [0, 1] → y [B, M, H/16, W/16]."""

    def __init__(self, N: int, M: int, *, token_mixing: bool = False) -> None:
        """token_mixing: pairs of token mixing in the place of residual blocks."""
        super().__init__()

        def between() -> nn.Module:
            return token_mixing_pair(N) if token_mixing else ResidualBlock(N, N)

        self.analysis_transform = nn.Sequential(
            DownsamplingBlock(3, N),
            between(),
            DownsamplingBlock(N, N),
            between(),
            DownsamplingBlock(N, N),
            between(),
            conv(N, M, stride=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.analysis_transform(x)
        return y
